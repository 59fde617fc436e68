"""Simulated histories: the real reconciler, fleet, store and policy, on a clock that exists only here."""
