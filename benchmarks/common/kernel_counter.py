"""Counts the kernels that torch operations stand for, on any device: what an accelerator would be asked to launch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# Operations that only reserve memory, or look at a tensor otherwise; views are known by their schema.
_FREE = frozenset(
    {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "lift_fresh"}
    | {"_unsafe_view", "_reshape_alias", "_local_scalar_dense"}
)


class KernelCounter(TorchDispatchMode):
    """Counts every operation as one kernel, but for views; an operation on many tensors by whether it can be one.

    Attributes:
        kernels: Operation -> number of kernels.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kernels: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        if name not in _FREE and not _is_view(func._schema):
            self.kernels[name] += _kernels_of_lists(args) if name.startswith("_foreach") else 1
        return out

    @property
    def total(self) -> int:
        """All kernels."""
        return self.kernels.total()

    @property
    def attention(self) -> int:
        """Those of attention itself, forward and backward."""
        return sum(count for name, count in self.kernels.items() if "scaled_dot_product" in name)


def _is_view(schema: Any) -> bool:
    aliases = [value.alias_info for value in schema.returns]
    return bool(aliases) and all(alias is not None and not alias.is_write for alias in aliases)


def _kernels_of_lists(args: Sequence[Any]) -> int:
    """One where all tensors are dense and those that belong together have the same strides; else one for each."""
    lists = [arg for arg in args if isinstance(arg, list | tuple) and arg and isinstance(arg[0], torch.Tensor)]
    alike = all(len({(t.shape, t.stride()) for t in together}) == 1 for together in zip(*lists, strict=True))
    one_type = all(len({t.dtype for t in tensors}) == 1 for tensors in lists)
    dense = all(torch.ops.aten.is_non_overlapping_and_dense(t) for tensors in lists for t in tensors)
    return 1 if alike and one_type and dense else len(lists[0])
