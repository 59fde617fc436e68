"""What was learned of base models, devices and data."""
