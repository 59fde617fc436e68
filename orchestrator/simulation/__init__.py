"""The scheduler's own decisions on a clock that exists only here."""
