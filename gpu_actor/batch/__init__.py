"""What goes through the base model together."""
