"""Tiny random base models and samples, built offline; shared by all tests."""

import json

import numpy as np

VOCABULARY = 128


def tiny_config(kind="llama", **changes):
    """A small configuration of a model family, with its peculiarities on."""
    from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

    common = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 100,  # no multiple of a vector register: odd ends are part of the test
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    classes = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
    extra = {"mistral": {"sliding_window": 7}, "qwen3": {"head_dim": 16}}.get(kind, {})
    return classes[kind](**{**common, **extra, **changes})


def tiny_model(kind="llama", seed=0, dtype=None, **changes):
    """A randomly initialised causal language model; equal arguments give equal weights."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_config(kind, **changes))
    with torch.no_grad():  # the default spread is so small that every token would look alike
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, 0.2 if "embed" in name or "lm_head" in name else 0.12)
    return model.to(dtype or torch.float32).eval()


def token_rows(count, seed=0, low=5, high=40, prompt=True):
    """Random pre-tokenised samples with masked prompts, as dictionaries."""
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        length = int(random.integers(low, high))
        ids = random.integers(3, VOCABULARY, length).tolist()
        masked = int(random.integers(1, max(2, length // 2))) if prompt else 0
        rows.append({"input_ids": ids, "labels": [-100] * masked + ids[masked:]})
    return rows


def write_rows(path, rows):
    """Write samples as jsonl; returns the path as a string."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)
