"""Quantised base models: linear layers whose weights bitsandbytes keeps in 4 or 8 bits.

nf4 is QLoRA's number format with double quantisation (arXiv 2305.14314), int8 that of LLM.int8() (arXiv 2208.07339).
Embeddings, norms and the output head stay as they are, as transformers leaves them. Products are made with the
dequantised weight in the model's own dtype: the inputs of a layer are never quantised, since an input's rounding
would then depend on who else is in the batch.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import nn

from gpu_actor.contract.config import Quantization
from gpu_actor.contract.errors import BaseModelError

_NEEDED = ("bitsandbytes", "accelerate")


def quantization_settings(quantization: Quantization, device: str, dtype: torch.dtype) -> dict[str, Any]:
    """Arguments for `from_pretrained` that quantise a model while it is loaded.

    Args:
        quantization: `nf4` or `int8`.
        device: Where the model goes; a quantised one cannot be moved afterwards.
        dtype: Of everything that is not quantised, and of all products.

    Raises:
        BaseModelError: bitsandbytes is not installed, or the dtype does not go with it.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise BaseModelError(
            f"quantization: {quantization} needs {' and '.join(missing)}, which is not installed; "
            "install the extra: pip install 'loray[quant]'"
        )
    if dtype is torch.float64:
        raise BaseModelError(
            f"quantization: {quantization} does not go with float64; allowed: float32, bfloat16, float16"
        )
    from transformers import BitsAndBytesConfig

    if quantization == "nf4":
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    else:
        config = BitsAndBytesConfig(load_in_8bit=True)
    return {"quantization_config": config, "device_map": {"": device}}


def quantization_of(module: torch.nn.Module) -> Quantization | None:
    """How the weight of a linear layer is quantised; None for a plain one."""
    if hasattr(module.weight, "quant_state"):
        return "nf4"
    if hasattr(module.weight, "SCB"):
        return "int8"
    return None


def keep_packing(model: nn.Module) -> None:
    """Keep the nf4 weights of a model as they were loaded, on every processor.

    On those with AVX-512 BF16, bitsandbytes packs a weight anew, in place, when its layer first runs without
    gradients: rows that 32 does not divide end in an error, and of the others `dequantize_4bit` no longer reads the
    weight. It looks at this attribute of each layer, where a release knows of that packing.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def dequantised(module: Any, dtype: torch.dtype | None = None) -> torch.Tensor:
    """The weight of a quantised linear layer as [out, in], in a new tensor each time.

    Args:
        module: A linear layer of bitsandbytes.
        dtype: Of the result; None: what the layer was quantised from (nf4), fp32 (int8).
    """
    weight = module.weight
    if quantization_of(module) == "nf4":
        from bitsandbytes.functional import dequantize_4bit

        dense: torch.Tensor = dequantize_4bit(weight.data, weight.quant_state)
        return dense if dtype is None else dense.to(dtype)
    # a layer that has run once keeps its scales in `state`; 127 steps reach a row's largest value
    scales = weight.SCB if module.state.SCB is None else module.state.SCB
    values: torch.Tensor = weight.data.to(dtype or torch.float32, copy=True)
    return values.mul_((scales * (1.0 / 127.0))[:, None])


def dense_weight(base: nn.Module, dtype: torch.dtype | None = None) -> torch.Tensor:
    """The weight of a linear layer as [out, in]: a view of the layer's own, or a new tensor of a quantised one.

    Args:
        base: `nn.Linear`, `Conv1D`, or a linear layer of bitsandbytes.
        dtype: Of a dequantised weight; None: what it was quantised from. A plain weight is given as it is.
    """
    if quantization_of(base) is not None:
        return dequantised(base, dtype)
    weight: torch.Tensor = base.weight  # type: ignore[assignment]
    return weight.t() if is_transposed(base) else weight


def is_transposed(base: nn.Module) -> bool:
    """Whether a linear layer keeps its weight as [in, out], as GPT-2's Conv1D does."""
    return not isinstance(base, nn.Linear)
