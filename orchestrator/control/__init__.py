"""The loop that observes, decides, records and acts, and how it is started."""
