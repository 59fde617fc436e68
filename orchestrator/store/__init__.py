"""The durable table of jobs."""
