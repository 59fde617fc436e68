"""The verb `export`: a trained adapter as a merged model, as GGUF, for Ollama, on the hub."""

from __future__ import annotations

import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from gpu_actor.contract.errors import LorayError
from gpu_actor.exporting.requests import Exported, ExportForm, ExportRequest
from orchestrator.cli import progress
from orchestrator.cli.model_options import QUANTIZATIONS, OneStep, caller, one_of, step_of
from orchestrator.cli.options import Address, AsJson
from orchestrator.results.export_job import export_job
from orchestrator.results.trained_job import find_result
from orchestrator.results.vllm import vllm_command

_GIB = 2**30
Jobs = Annotated[
    list[str],
    typer.Argument(
        metavar="JOB...",
        help="Name or id of a job, or an output folder; several with --vllm-command.",
        show_default=False,
    ),
]


def export(
    jobs: Jobs,
    merged: Annotated[
        Path | None,
        typer.Option("--merged", metavar="DIR", help="The base model with the adapter merged in.", show_default=False),
    ] = None,
    gguf: Annotated[
        Path | None,
        typer.Option("--gguf", metavar="FILE", help="The same as one GGUF file, by llama.cpp.", show_default=False),
    ] = None,
    gguf_lora: Annotated[
        Path | None,
        typer.Option("--gguf-lora", metavar="FILE", help="The adapter alone as GGUF.", show_default=False),
    ] = None,
    ollama: Annotated[
        Path | None,
        typer.Option("--ollama", metavar="DIR", help="The merged GGUF and a Modelfile.", show_default=False),
    ] = None,
    push: Annotated[
        str | None,
        typer.Option("--push", metavar="REPO", help="Upload the adapter to the hub.", show_default=False),
    ] = None,
    vllm: Annotated[
        bool, typer.Option("--vllm-command", help="Print the command that serves the adapters by vLLM.")
    ] = False,
    step: OneStep = "latest",
    quantization: Annotated[
        str | None,
        typer.Option(
            metavar="nf4|int8", help="Merge into the weights as a quantised actor has them.", show_default=False
        ),
    ] = None,
    allow_pickle: Annotated[bool, typer.Option(help="Read .bin files of the base model.")] = False,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Give a trained adapter another form: one model for any program, a GGUF file, a repository on the hub."""
    wanted: dict[ExportForm, Path | str | None] = {
        "merged": merged,
        "gguf": gguf,
        "gguf-lora": gguf_lora,
        "ollama": ollama,
        "push": push,
    }
    given = {form: target for form, target in wanted.items() if target is not None}
    if len(given) + vllm != 1:
        raise LorayError(f"give one of --{', --'.join(wanted)}, --vllm-command")
    call = caller(address)
    if vllm:
        _print_command(vllm_command([find_result(job, call) for job in jobs], step_of(step)), as_json=as_json)
        return
    ((form, target),) = given.items()
    if len(jobs) > 1:
        raise LorayError(f"--{form} takes one job, and these are {len(jobs)}: {', '.join(jobs)}")
    found = find_result(jobs[0], call)
    request = ExportRequest(
        name=found.name,
        base_model=found.base_model,
        folder=found.folder,
        step=step_of(step),
        form=form,
        target=str(target.expanduser().absolute()) if isinstance(target, Path) else target,
        job=found.settings,
        quantization=one_of(QUANTIZATIONS, "--quantization", quantization) if quantization else None,
        allow_pickle=allow_pickle,
    )
    made = export_job(request, _quiet if as_json or not sys.stderr.isatty() else _show_progress)
    if as_json:
        progress.print_json(asdict(made))
    else:
        _show(request, made)


def _print_command(words: list[str], *, as_json: bool) -> None:
    if as_json:
        progress.print_json({"command": words})
    else:
        print(shlex.join(words))


def _quiet(done: int, total: int) -> None:
    """Nobody watches."""


def _show_progress(done: int, total: int) -> None:
    end = "\n" if done >= total else ""
    print(f"\r{done / _GIB:.1f} of {total / _GIB:.1f} GiB", end=end, file=sys.stderr, flush=True)


def _show(request: ExportRequest, made: Exported) -> None:
    print(f"{request.name} ({made.which}): {made.place}")
    if made.layers:
        sizes = f"{made.weight_bytes / _GIB:.2f} GiB of weights, {made.peak_bytes / _GIB:.2f} GiB of memory at most"
        print(f"{made.layers} layers merged; {sizes}")
        if request.quantization is None:
            print(
                "merged into the weights as they are stored; if the job was trained on a quantised base "
                "(nf4, int8), --quantization merges into the rounded weights that it saw"
            )
    if request.form == "ollama":
        print(f"ollama create {request.name.lower()} -f {made.place}/Modelfile")
    elif request.form == "gguf-lora":
        print(f"llama-server -m BASE.gguf --lora {made.place}")
