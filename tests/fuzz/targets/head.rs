//! See `kateway_fuzz::head`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kateway_fuzz::head(bytes));
