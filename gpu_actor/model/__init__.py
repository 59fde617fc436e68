"""The frozen base model, hooked for shared batches and probed."""
