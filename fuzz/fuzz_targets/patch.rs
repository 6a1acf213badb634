//! libFuzzer over [`fuzz::patch`].
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    _ = fuzz::patch(data);
});
