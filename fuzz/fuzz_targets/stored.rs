//! libFuzzer over [`fuzz::stored`].
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    _ = fuzz::stored(data);
});
