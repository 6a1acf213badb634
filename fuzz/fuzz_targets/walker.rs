//! libFuzzer over [`fuzz::walker`].
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    _ = fuzz::walker(data);
});
