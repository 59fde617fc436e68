"""How a client reaches the orchestrator: through Ray, or through its HTTP door."""
