//! libFuzzer over [`fuzz::sql`].
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    _ = fuzz::sql(data);
});
