"""A base model and an adapter of it, made one model that other programs load."""
