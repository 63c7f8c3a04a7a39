#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| x0_msg_server::fuzzing::http1(bytes));
