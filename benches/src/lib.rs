//! Micro-benchmarks of sockeye: see `benches/`.
