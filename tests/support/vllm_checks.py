"""What vLLM 0.33.0 asks of a LoRA adapter before it loads it, and the update that it then computes.

Written after its `lora/peft_helper.py` (`from_local_dir`, `validate_legal`, `get_rank_and_scaling`), `lora/utils.py`
(`parse_fine_tuned_lora_name`), `lora/lora_model.py` (`from_local_checkpoint`) and `config/lora.py` (`MaxLoRARanks`).
"""

import json
import math
import re
from pathlib import Path

from safetensors.torch import load_file

MAX_RANKS = {1, 8, 16, 32, 64, 128, 256, 320, 512}
STARTS = {"gaussian", "eva", "orthogonal", "mica", "lora_ga"}
# read to refuse them, whatever they hold
REFUSED = ("use_dora", "lora_bias", "alora_invocation_tokens", "layer_replication", "use_bdlora", "use_qalora")


class RefusedByVllm(Exception):
    """vLLM would not load the adapter."""


def _check_config(config, max_rank):
    if missing := {"r", "lora_alpha", "target_modules"} - config.keys():
        raise RefusedByVllm(f"missing {missing}")
    start = config.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower() not in STARTS:
        raise RefusedByVllm(f"init_lora_weights {start}")
    if set(config.get("modules_to_save") or ()) - {"classifier", "score"}:
        raise RefusedByVllm("modules_to_save")
    for field in REFUSED:
        if config.get(field):
            raise RefusedByVllm(field)
    if config.get("bias", "none") != "none":
        raise RefusedByVllm("bias")
    if max_rank not in MAX_RANKS or max(config["r"], *(config.get("rank_pattern") or {}).values(), 1) > max_rank:
        raise RefusedByVllm("rank")


def _of_pattern(pattern, module, default):
    return next((value for key, value in (pattern or {}).items() if re.match(rf"(.*\.)?({key})$", module)), default)


def updates(folder, max_rank, endings):
    """By module, the update of its weight [out, in] as vLLM computes it.

    Args:
        folder: The adapter's.
        max_rank: `--max-lora-rank`.
        endings: The last names of the modules that the model can adapt.
    """
    config = json.loads((Path(folder) / "adapter_config.json").read_text())
    _check_config(config, max_rank)
    tensors, found = load_file(Path(folder) / "adapter_model.safetensors"), {}
    for name, tensor in tensors.items():
        match = re.fullmatch(r"(?:base_model\.model\.)?(.+)\.(lora_A|lora_B)\.weight", name)
        if match is None:
            raise RefusedByVllm(f"{name} is unsupported LoRA weight")
        if match[1].rsplit(".", 1)[-1] not in endings:
            raise RefusedByVllm(f"unexpected {match[1]}")
        found.setdefault(match[1], {})[match[2]] = tensor
    made = {}
    for module, pair in found.items():
        rank = _of_pattern(config.get("rank_pattern"), module, config["r"])
        alpha = _of_pattern(config.get("alpha_pattern"), module, config["lora_alpha"])
        made[module] = pair["lora_B"] @ pair["lora_A"] * (alpha / (math.sqrt(rank) if config["use_rslora"] else rank))
    return made
