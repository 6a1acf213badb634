//! libFuzzer over [`fuzz::wal_index`].
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    _ = fuzz::wal_index(data);
});
