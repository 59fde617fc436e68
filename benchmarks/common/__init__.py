"""What several benchmarks share: the work, the two sides that do it, and the meters."""
