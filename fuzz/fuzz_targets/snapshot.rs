//! libFuzzer over [`fuzz::snapshot`].
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    _ = fuzz::snapshot(data);
});
