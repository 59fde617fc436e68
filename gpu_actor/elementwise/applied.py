"""Functions of autograd, called directly where no gradient is wanted: the same arithmetic without the bookkeeping."""

from __future__ import annotations

from typing import Any

import torch


def applied(function: type[torch.autograd.Function], *args: Any) -> torch.Tensor:
    """What `function` gives for `args`; without gradients its forward is called as it is.

    A step of an answer is one token through hundreds of small operations, of which autograd's own work is a tenth.
    """
    if torch.is_grad_enabled():
        return function.apply(*args)  # type: ignore[no-any-return, no-untyped-call]
    return function.forward(_Unsaved(), *args)  # type: ignore[no-any-return]


class _Unsaved:
    """Takes what a forward keeps for its backward, and drops it."""

    def save_for_backward(self, *tensors: torch.Tensor | None) -> None:
        """Keep nothing."""
