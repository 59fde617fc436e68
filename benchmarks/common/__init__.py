"""What several benchmarks share: the work, the two sides that do it, the meters, the workloads of the scheduler."""
