//! libFuzzer over [`fuzz::bodies`].
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    _ = fuzz::bodies(data);
});
