//! libFuzzer over [`fuzz::load`].
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    _ = fuzz::load(data);
});
