"""What a card has to show, and the table of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True)
class Gate:
    """One thing that a result must show.

    Attributes:
        what: In words.
        of: The beginning of the result's name.
        value: What counts of it.
        bound: The least or the largest value.
        least: Whether `bound` is the least.
        exact: Whether it holds on a CPU too, where nothing is judged that has to do with time or a card.
    """

    what: str
    of: str
    value: Callable[[Row], float | None]
    bound: float
    least: bool = False
    exact: bool = False

    def holds(self, value: float) -> bool:
        """Whether a value passes; NaN does not."""
        return value >= self.bound if self.least else value <= self.bound


def _of(key: str) -> Callable[[Row], float | None]:
    return lambda row: None if row.get(key) is None else float(row[key])


_GROUPED = "grouped products and the loop, "
GATES = (
    Gate("fp32: losses and PEFT's", "engine and PEFT, float32", _of("loss_difference"), 1e-4, exact=True),
    Gate("fp32: adapters and PEFT's", "engine and PEFT, float32", _of("value_difference"), 1e-4, exact=True),
    Gate("bf16: losses and PEFT's", "engine and PEFT, bfloat16", _of("loss_difference"), 2e-2, exact=True),
    Gate("bf16: cosine with PEFT's update", "engine and PEFT, bfloat16", _of("cosine"), 0.99, least=True, exact=True),
    Gate("fp32: grouped products = loop", _GROUPED + "float32", _of("gradient_difference"), 1e-4, exact=True),
    Gate("bf16: grouped products = loop", _GROUPED + "bfloat16", _of("gradient_difference"), 5e-2, exact=True),
    Gate("bf16: one call = per sequence", "attention in one", _of("gradient_difference"), 5e-2, exact=True),
    Gate("fp32: packed = apart", "packed and apart, float32", _of("gradient_difference"), 1e-4, exact=True),
    Gate("bf16: packed = apart", "packed and apart, bfloat16", _of("gradient_difference"), 5e-2, exact=True),
    Gate("an idle adapter keeps its bytes", "an idle", _of("equal"), 1, least=True, exact=True),
    Gate("beside NaN or a huge loss: finite", "beside", _of("finite"), 1, least=True, exact=True),
    Gate("beside NaN or a huge loss: losses", "beside", _of("loss_difference"), 2e-2, exact=True),
    Gate("fp32: alone = in company", "alone and in company, float32", _of("value_difference"), 1e-4, exact=True),
    Gate("bf16: losses alone and in company", "alone and in company, bf", _of("loss_difference"), 2e-2, exact=True),
    Gate("bf16: cosine of the updates", "alone and in company, bf", _of("cosine"), 0.99, least=True, exact=True),
    Gate("bf16: distance over own noise", "alone and in company, bf", lambda row: _ratio(row), 2.0),
    Gate("kernels of many adapters over one", "kernels", _of("ratio"), 1.15),
    Gate("second step over fifth, new lengths", "new lengths", _of("second_over_fifth"), 1.1),
    Gate("PEFT without padding", "speed, 4 jobs", _of("ratio"), 1.2, least=True),
    Gate("PEFT with its padding", "speed, 8 jobs", _of("ratio"), 1.7, least=True),
    Gate("PEFT on 16 tiny jobs", "speed, 16 jobs", _of("ratio"), 3.0, least=True),
    Gate("MFU", "speed, 4 jobs", _of("mfu"), 0.38, least=True),
    Gate("cost of dropout", "dropout", _of("cost"), 0.1),
    Gate("error of a + b tokens + c adapters", "T =", _of("error"), 0.1),
    Gate("peak off its prediction", "memory, ", lambda row: abs(row["ratio"] - 1), 0.05),
    Gate("reserved over peak", "memory, ", _of("reserved_ratio"), 1.1),
    Gate("jobs lost where memory ran out", "memory that runs out", _of("lost"), 0, exact=True),
)


def _ratio(row: Row) -> float:
    return float(row["distance"]) / max(float(row["noise"]), 1e-12)


def judged(rows: Sequence[Row], *, on_cuda: bool) -> list[tuple[Gate, float, bool | None]]:
    """Every gate that a result is there for, with its worst value, and whether it passes; None: not judged here."""
    found = []
    for gate in GATES:
        values = [
            value for row in rows if row["what"].startswith(gate.of) for value in [gate.value(row)] if value is not None
        ]
        if values:
            worst = min(values) if gate.least else max(values, key=lambda value: (value != value, value))
            found.append((gate, worst, gate.holds(worst) if on_cuda or gate.exact else None))
    return found


def table(gates: Sequence[tuple[Gate, float, bool | None]]) -> str:
    """One line for each."""
    verdicts = {True: "pass", False: "FAIL", None: "-"}
    lines = [f"{'gate':<38}{'value':>12}  {'bound':>10}  "]
    lines += [
        f"{gate.what:<38}{value:>12.4g}  {'>=' if gate.least else '<='}{gate.bound:>8g}  {verdicts[passed]}"
        for gate, value, passed in gates
    ]
    return "\n".join(lines)
