"""Benchmark cases, a module per fast form; `fast.bench.case` says what a case is."""
