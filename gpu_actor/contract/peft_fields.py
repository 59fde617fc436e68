"""Fields of PEFT's own configuration that Loray refuses, and what it says of them."""

from __future__ import annotations

from collections.abc import Mapping

PEFT_ONLY: Mapping[str, str] = {
    "alora_invocation_tokens": "aLoRA (adapters that wake up at given tokens)",
    "arrow_config": "Arrow (routing among adapters)",
    "bias": "training the base's biases",
    "corda_config": "CorDA (a start from the data's covariance)",
    "ensure_weight_tying": "training tied weights together",
    "eva_config": "EVA (a start from the activations' singular values)",
    "kasa_config": "KaSA",
    "layer_replication": "replicating layers of the base",
    "loftq_config": "LoftQ (a start that makes up for quantisation)",
    "lora_bias": "a bias inside the update",
    "lora_ga_config": "LoRA-GA (a start from gradients)",
    "megatron_config": "Megatron's parallel layers",
    "modules_to_save": "training whole modules beside the adapter",
    "monteclora_config": "MonteCLoRA",
    "target_parameters": "adapting bare parameters, such as those of experts",
    "trainable_token_indices": "training single tokens of the embedding",
    "use_bdlora": "BD-LoRA (block-diagonal updates)",
    "use_qalora": "QALoRA (updates grouped for quantisation)",
    "velora_config": "VeLoRA",
}
"""Field -> what it is for."""


def unsupported_message(field: str) -> str | None:
    """What to say of a field of PEFT's that Loray does not have; None for any other name."""
    return (
        f"is PEFT's word for {PEFT_ONLY[field]}, which Loray does not have; leave it out"
        if field in PEFT_ONLY
        else None
    )
