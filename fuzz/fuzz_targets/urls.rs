//! libFuzzer over [`fuzz::urls`].
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    _ = fuzz::urls(data);
});
