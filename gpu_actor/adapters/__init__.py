"""One adapter: where it sits, its shapes, values and files."""
