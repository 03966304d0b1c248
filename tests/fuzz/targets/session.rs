//! See `kateway_fuzz::session`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kateway_fuzz::session(bytes));
