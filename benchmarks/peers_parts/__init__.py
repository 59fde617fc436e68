"""The parts of `peers.py`: environments, runs, the report, and the program of each peer."""
