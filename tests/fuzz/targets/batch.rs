//! See `kateway_fuzz::batch`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kateway_fuzz::batch(bytes));
