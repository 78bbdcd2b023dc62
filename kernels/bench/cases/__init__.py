"""Benchmark cases, a module per kernel; `kernels.bench.case` says what a case is."""
