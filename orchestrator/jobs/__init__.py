"""What a job is, from a file to a checked specification."""
