"""What the device has, and what a step takes of it."""
