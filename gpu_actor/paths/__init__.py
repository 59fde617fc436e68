"""Where files lie, which places are allowed, and what those of Loray's own are called; nothing here reads a job."""
