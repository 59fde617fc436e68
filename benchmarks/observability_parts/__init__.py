"""The parts of `benchmarks/observability.py`: a `loray serve`, eight jobs, what is seen of them, and what it costs."""
