"""What a process that trains on a GPU sets once: for its allocator, its share of the card, and its attention."""

from __future__ import annotations

import os

from gpu_actor.device.memory import ACCELERATOR_RESERVE

_ALLOCATOR = "PYTORCH_ALLOC_CONF"
_OLD_ALLOCATOR = "PYTORCH_CUDA_ALLOC_CONF"  # what torch called it before 2.9, and still reads


def set_allocator(device: str) -> None:
    """Let torch's allocator grow its blocks in place; to be called before torch is imported.

    Shared batches have another size each time. Blocks of fixed sizes then leave gaps that nothing fits into, and the
    card is full while much of it is free. What the environment says already stays.
    """
    if device.startswith("cuda") and _OLD_ALLOCATOR not in os.environ:
        os.environ.setdefault(_ALLOCATOR, "expandable_segments:True")


def prepare_gpu(device: str, share: float = 1.0) -> None:
    """Switch off attention by cuDNN, and keep this process to its share of the card; nothing on a CPU.

    cuDNN plans anew for every length and stride that it has not met (others measured 23 to 37 ms for each), and the
    sequences of a packed row have new ones in every step.

    Args:
        device: `cpu`, `cuda` or `cuda:<n>`.
        share: Of the card, that is this process's own.
    """
    if not device.startswith("cuda"):
        return
    import torch

    torch.backends.cuda.enable_cudnn_sdp(False)
    if share < 1.0:
        # half of the reserve is for the context, which the allocator does not count
        context = ACCELERATOR_RESERVE / 2 / torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(max(share - context, share / 2), device)
