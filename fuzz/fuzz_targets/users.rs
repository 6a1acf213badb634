//! libFuzzer over [`fuzz::users`].
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    _ = fuzz::users(data);
});
