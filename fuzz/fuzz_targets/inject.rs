//! libFuzzer over [`fuzz::inject`].
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    _ = fuzz::inject(data);
});
