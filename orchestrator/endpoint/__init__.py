"""The HTTP door of the orchestrator: the verbs under /api, and what OpenAI's clients expect under /v1."""
