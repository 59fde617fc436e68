"""What an actor is told, what it tells, and what both sides count alike; neither torch nor Ray."""
