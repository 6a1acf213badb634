//! libFuzzer over [`fuzz::frames`].
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    _ = fuzz::frames(data);
});
