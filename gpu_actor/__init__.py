"""The training side of Loray: one process hosts one frozen base model and trains many adapters on it.

Nothing is imported here on purpose: the orchestrator reads `gpu_actor.contract.config` without loading torch.
"""
