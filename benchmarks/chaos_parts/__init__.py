"""The parts of `benchmarks/chaos.py`: a cluster that can be harmed, the harms, the jobs, and what became of them."""
