"""What is to be made of a trained adapter, and what was made: plain values, so that they travel without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from gpu_actor.contract.config import Quantization
from gpu_actor.contract.questions import Step
from gpu_actor.contract.strict import Strict

ExportForm = Literal["merged", "gguf", "gguf-lora", "ollama", "push"]
"""A merged model's folder, the same as one GGUF file, the adapter alone as one, a folder for Ollama, or the hub."""


class ExportRequest(Strict):
    """One adapter and the form that it is wanted in.

    Attributes:
        name: Of the job, for people.
        base_model: As the job names it.
        folder: The job's output folder, or the folder of an adapter.
        step: Which step of the job.
        form: The wanted form.
        target: A folder, a file, or the id of a repository on the hub.
        job: The job's settings, for the model card; empty where they are not known.
        quantization: Merge into weights that are rounded as the adapter's actor had them; None: as stored.
        allow_pickle: Read .bin files of the base where there are no safetensors.
    """

    name: str
    base_model: str
    folder: str
    step: Step = "latest"
    form: ExportForm
    target: str = Field(min_length=1)
    job: dict[str, Any] = Field({})
    quantization: Quantization | None = None
    allow_pickle: bool = False


@dataclass(frozen=True)
class Exported:
    """What was made.

    Attributes:
        place: Where it is: a folder, a file or an address on the hub.
        which: Which step was exported, in words.
        weight_bytes: Bytes of the weights that were written.
        peak_bytes: The most memory that the process had.
        layers: Layers that the adapter changes; 0 where nothing was merged.
    """

    place: str
    which: str
    weight_bytes: int
    peak_bytes: int
    layers: int = 0
