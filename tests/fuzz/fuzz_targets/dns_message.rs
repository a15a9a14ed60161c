#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sockeye::fuzzing::dns_message(data));
