"""Benchmarks: each module runs by `python -m benchmarks.<name>` and writes its JSON."""
