//! libFuzzer over [`fuzz::delta`].
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    _ = fuzz::delta(data);
});
