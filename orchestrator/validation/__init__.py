"""A file that nobody has checked, and what is wrong with it in words."""
