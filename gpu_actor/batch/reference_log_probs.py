"""What the reference says of the answers of a data set."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from gpu_actor.adapters.weights import AdapterWeights


class ReferenceLogProbs:
    """Log-probabilities of the answers of one data set under the reference; filled as they are needed.

    Attributes:
        weights: The reference adapter; None is the base model itself.
    """

    def __init__(self, weights: AdapterWeights | None, samples: int, answers: int) -> None:
        """Nothing is computed yet.

        Args:
            weights: The reference adapter; None is the base model itself.
            samples: Of the data set.
            answers: Of each sample: two of a pair.
        """
        self.weights = weights
        self._values = np.zeros((samples, answers), dtype=np.float64)
        self._filled = np.zeros(samples, dtype=bool)

    def has(self, number: int) -> bool:
        """Whether a sample has been computed."""
        return bool(self._filled[number])

    def of(self, numbers: Sequence[int]) -> npt.NDArray[np.float64]:
        """The values of some samples, [n, answers]; of pairs the chosen answer comes first.

        Raises:
            KeyError: One of them has not been computed.
        """
        wanted = list(numbers)
        if not self._filled[wanted].all():
            raise KeyError(f"no reference for some of the samples {wanted}")
        return self._values[wanted]

    def put(self, number: int, *values: float) -> None:
        """Keep the values of one sample's answers."""
        self._values[number] = values
        self._filled[number] = True
