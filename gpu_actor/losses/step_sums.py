"""What the micro-batches of one optimizer step, or of one evaluation, add up to."""

from __future__ import annotations

import torch

from gpu_actor.losses.objectives import SegmentLoss


class StepSums:
    """Sums of losses and of the figures that are logged beside them; they stay on the device until they are read."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}

    def add(self, found: SegmentLoss) -> None:
        """Add what one micro-batch gave."""
        for name, value in {"loss": found.loss.detach(), **found.figures}.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def read(self) -> tuple[float, dict[str, float]]:
        """The loss, and the figures by name; waits for the device once."""
        if not self._sums:
            return 0.0, {}
        loss, *figures = torch.stack(list(self._sums.values())).tolist()
        return loss, dict(zip(list(self._sums)[1:], figures, strict=True))
