"""From a path to records."""
