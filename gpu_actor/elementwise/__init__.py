"""Norms, rotary positions and SwiGLU of stock models in fewer passes over memory, where they are known exactly."""
