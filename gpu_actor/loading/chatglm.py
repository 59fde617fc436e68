"""ChatGLM2 and ChatGLM3 checkpoints in their original form, as transformers' Glm.

The originals (`model_type: chatglm`) come with Python code of their own; Glm is the same network under other names,
so configuration and tensors are mapped and none of that code runs. Written against the published layout:
query, key and value are one matrix (first all queries, then keys, then values; without multi-query attention head
by head), gate and up are one matrix, and rotary positions turn the first half of each head in interleaved pairs.

`python -m gpu_actor.export_chatglm FOLDER OUT` writes the mapped model, which transformers and PEFT load by
themselves.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from gpu_actor.contract.errors import BaseModelError

_SIZES = (
    "num_layers",
    "padded_vocab_size",
    "hidden_size",
    "ffn_hidden_size",
    "num_attention_heads",
    "seq_length",
)
_SIZES_IF_GIVEN = ("multi_query_group_num", "kv_channels")
# What Glm cannot do otherwise: field -> the only value that is allowed, which is also the original's default.
_FIXED = {
    "post_layer_norm": True,
    "rmsnorm": True,
    "apply_residual_connection_post_layernorm": False,
    "add_bias_linear": False,
    "fp32_residual_connection": False,
    "tie_word_embeddings": False,
    "original_rope": True,
    "quantization_bit": 0,
    "pre_seq_len": None,
}
_WHY = {
    "quantization_bit": "a checkpoint that is quantised already; give the unquantised one, and set the actor's "
    "quantization in the cluster file",
    "pre_seq_len": "a checkpoint with a P-tuning prefix (transformer.prefix_encoder); give the base model",
}
_ROPE_BASE = 10_000.0
_TENSORS = {
    "transformer.embedding.word_embeddings.weight": "model.embed_tokens.weight",
    "transformer.encoder.final_layernorm.weight": "model.norm.weight",
    "transformer.output_layer.weight": "lm_head.weight",
}
_LAYER = re.compile(r"transformer\.encoder\.layers\.([0-9]+)\.(.+)")
_LAYER_TENSORS = {
    "input_layernorm.weight": "input_layernorm.weight",
    "post_attention_layernorm.weight": "post_attention_layernorm.weight",
    "self_attention.dense.weight": "self_attn.o_proj.weight",
    "mlp.dense_h_to_4h.weight": "mlp.gate_up_proj.weight",
    "mlp.dense_4h_to_h.weight": "mlp.down_proj.weight",
}
_FUSED = re.compile(r"self_attention\.query_key_value\.(weight|bias)")
_COMPUTED = re.compile(r"transformer\.rotary_pos_emb\.inv_freq")  # Glm computes it
_NAMED_GENERATION = re.compile(r"chatglm[-_]?([23])|glm[-_]?(4)", re.IGNORECASE)


def is_chatglm(raw: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of an original ChatGLM checkpoint."""
    return raw.get("model_type") == "chatglm"


def generation(raw: Mapping[str, Any], ref: str) -> int | None:
    """2, 3 or 4: which ChatGLM it is, by the name in its configuration, else by its own; None if neither tells."""
    for name in (str(raw.get("_name_or_path", "")), ref.rstrip("/").rpartition("/")[2]):
        if match := _NAMED_GENERATION.search(name):
            return int(match[1] or match[2])
    return None


def glm_config(raw: Mapping[str, Any], ref: str) -> Any:
    """The configuration of Glm for an original ChatGLM checkpoint.

    Args:
        raw: Its config.json.
        ref: How the jobs name it.

    Raises:
        BaseModelError: It uses what Glm has not; the message names the field.
    """
    from transformers import GlmConfig

    _check_config(raw, ref)
    heads = raw["num_attention_heads"]
    head_size = raw.get("kv_channels") or raw["hidden_size"] // heads
    return GlmConfig(
        vocab_size=raw["padded_vocab_size"],
        hidden_size=raw["hidden_size"],
        intermediate_size=raw["ffn_hidden_size"],
        num_hidden_layers=raw["num_layers"],
        num_attention_heads=heads,
        num_key_value_heads=_key_value_heads(raw),
        head_dim=head_size,
        attention_bias=raw.get("add_qkv_bias", False),
        rms_norm_eps=raw.get("layernorm_epsilon", 1e-5),
        max_position_embeddings=raw["seq_length"],
        rope_parameters=_rope(raw, ref),
        tie_word_embeddings=False,
        bos_token_id=raw.get("bos_token_id"),
        eos_token_id=raw.get("eos_token_id", 2),
        pad_token_id=raw.get("pad_token_id", 0),
        architectures=["GlmForCausalLM"],
    )


def _check_config(raw: Mapping[str, Any], ref: str) -> None:
    if "inner_hidden_size" in raw or "position_encoding_2d" in raw:
        raise BaseModelError(
            f"base_model: {ref}: a first-generation ChatGLM-6B, another network; allowed: ChatGLM2, ChatGLM3, GLM-4"
        )
    given = [field for field in _SIZES_IF_GIVEN if raw.get(field) is not None]
    for field in (*_SIZES, *given):
        value = raw.get(field)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise BaseModelError(
                f"base_model: {ref}: config.json: {field} is {value!r}; it must be a whole number above 0"
            )
    for field, allowed in _FIXED.items():
        value = raw.get(field, allowed)
        if value != allowed and not (allowed == 0 and value is None):
            why = _WHY.get(field, f"Glm, onto which ChatGLM is mapped, has only {allowed}")
            raise BaseModelError(f"base_model: {ref}: config.json: {field} is {value!r}: {why}")


def _key_value_heads(raw: Mapping[str, Any]) -> int:
    if not raw.get("multi_query_attention", False):
        return int(raw["num_attention_heads"])
    return int(raw.get("multi_query_group_num") or 1)


def _rope(raw: Mapping[str, Any], ref: str) -> dict[str, Any]:
    """Rotary positions. `rope_ratio` divides the positions in ChatGLM2, and multiplies the base from ChatGLM3 on."""
    ratio = raw.get("rope_ratio") or 1
    rope = {"rope_type": "default", "rope_theta": _ROPE_BASE, "partial_rotary_factor": 0.5}
    if ratio == 1:
        return rope
    which = generation(raw, ref)
    if which is None:
        raise BaseModelError(
            f"base_model: {ref}: config.json: rope_ratio {ratio!r} means one thing in ChatGLM2 and another from "
            'ChatGLM3 on; say which it is, such as "_name_or_path": "THUDM/chatglm3-6b-32k" in config.json'
        )
    if which == 2:
        return {**rope, "rope_type": "linear", "factor": float(ratio)}
    return {**rope, "rope_theta": _ROPE_BASE * ratio}


def glm_tensors(raw: Mapping[str, Any], tensors: Iterable[tuple[str, Any]], ref: str) -> dict[str, Any]:
    """The tensors of Glm from those of an original ChatGLM checkpoint; parts of fused ones are views.

    Args:
        raw: The checkpoint's config.json.
        tensors: Names and values.
        ref: How the jobs name the model.

    Raises:
        BaseModelError: A tensor is unknown or has the wrong shape; the message names it.
    """
    mapped: dict[str, Any] = {}
    for name, tensor in tensors:
        layer = _LAYER.fullmatch(name)
        if name in _TENSORS:
            mapped[_TENSORS[name]] = tensor
        elif layer and layer[2] in _LAYER_TENSORS:
            mapped[f"model.layers.{layer[1]}.{_LAYER_TENSORS[layer[2]]}"] = tensor
        elif layer and (fused := _FUSED.fullmatch(layer[2])):
            for which, part in zip("qkv", _split(raw, tensor, name, ref), strict=True):
                mapped[f"model.layers.{layer[1]}.self_attn.{which}_proj.{fused[1]}"] = part
        elif not _COMPUTED.fullmatch(name):
            raise BaseModelError(f"base_model: {ref}: {_unknown_tensor(name)}")
    return mapped


def _unknown_tensor(name: str) -> str:
    """What to say of a tensor that has no place in Glm."""
    if name.startswith("transformer.prefix_encoder."):
        return f"{name}: a P-tuning prefix is not supported; give the base model without it"
    if name.endswith("weight_scale"):
        return f"{name}: {_WHY['quantization_bit']}"
    return f"the tensor {name} is none of ChatGLM2 or ChatGLM3, so the checkpoint would be read in part only"


def _split(raw: Mapping[str, Any], fused: Any, name: str, ref: str) -> tuple[Any, Any, Any]:
    """Query, key and value rows of a fused matrix [rows, hidden] or bias [rows]."""
    heads, groups = raw["num_attention_heads"], _key_value_heads(raw)
    size = raw.get("kv_channels") or raw["hidden_size"] // heads
    rows = (heads + 2 * groups) * size
    if fused.shape[0] != rows:
        raise BaseModelError(f"base_model: {ref}: {name} has {fused.shape[0]} rows where config.json makes them {rows}")
    if raw.get("multi_query_attention", False):
        query, key, value = fused.split([heads * size, groups * size, groups * size])
        return query, key, value
    by_head = fused.view(heads, 3, size, *fused.shape[1:])
    query, key, value = (by_head[:, part].reshape(heads * size, *fused.shape[1:]) for part in range(3))
    return query, key, value
