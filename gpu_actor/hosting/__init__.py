"""The working actor: a base model, the thread that trains on it, and the thread that prepares jobs. No Ray."""
