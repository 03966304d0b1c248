//! See `kateway_fuzz::proxy`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kateway_fuzz::proxy(bytes));
