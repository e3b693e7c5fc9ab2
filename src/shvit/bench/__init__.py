"""Benchmarks: time networks in interleaved rounds, and compare them with the machine's peak FLOP/s."""
