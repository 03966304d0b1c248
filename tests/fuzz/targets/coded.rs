//! See `kateway_fuzz::coded`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kateway_fuzz::coded(bytes));
