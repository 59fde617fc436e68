"""What is done with the adapters of jobs: found on disk, given another form, handed to a server."""
