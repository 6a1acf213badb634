//! libFuzzer over [`fuzz::messages`].
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    _ = fuzz::messages(data);
});
