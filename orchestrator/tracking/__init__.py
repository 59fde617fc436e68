"""Experiment trackers: a process of its own reads what jobs have written to metrics.jsonl and passes it on."""
