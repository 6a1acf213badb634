//! libFuzzer over [`fuzz::log`].
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    _ = fuzz::log(data);
});
