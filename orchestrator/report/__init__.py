"""One page about many jobs: curves, settings against results, who trained where, what failed and what waits."""
