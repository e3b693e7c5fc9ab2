"""Benchmarks: networks timed in interleaved rounds, and compared with the peak of the machine."""
