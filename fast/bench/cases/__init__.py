"""Benchmark cases, a module per kernel; `fast.bench.case` says what a case is."""
