"""The main job through the real command line on real Ray: the adapters equal those trained alone, whoever fails."""

import json

import pytest
import torch
from peft import LoraConfig as PeftLoraConfig
from peft import get_peft_model
from safetensors.torch import load_file, save_file

from support.cluster import wait_until
from support.command import LORAY
from support.engine import make_spec, tiny_hooked
from support.jobs import JOBS
from support.oracle import adapter_tensors, largest_difference, metric_rows, train_alone
from support.tiny import tiny_model, token_rows, write_rows

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600), pytest.mark.xdist_group("served")]

TRAINING = {"max_steps": 15, "learning_rate": 2e-3, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}


def job(folder, base, name, rows, **settings):
    """One entry of a job file; its data lie beside it."""
    write_rows(folder / f"{name}.jsonl", rows)
    return {
        "name": name,
        "base_model": base,
        "dataset": {"path": f"{name}.jsonl", "format": "tokens"},
        "output_dir": f"out/{name}",
        **settings,
    }


def write_jobs(folder, jobs):
    path = folder / "jobs.json"
    path.write_text(json.dumps({"jobs": jobs}))
    return path


def saved(folder):
    """A saved adapter's tensors by (module name, "A" or "B")."""
    tensors = load_file(f"{folder}/adapter_model.safetensors")
    split = {name: name.removeprefix("base_model.model.").rsplit(".lora_", 1) for name in tensors}
    return {(module, rest[0]): tensors[name] for name, (module, rest) in split.items()}


def peft_start(folder, base):
    """An adapter that PEFT made, with a B that is not zero."""
    torch.manual_seed(5)
    config = PeftLoraConfig(
        r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False
    )
    get_peft_model(tiny_model(), config).save_pretrained(folder)
    return str(folder)


def test_adapters_equal_solo_trainer_through_the_command_line(tmp_path, tiny_base, served):
    start = peft_start(tmp_path / "start", tiny_base)
    jobs = {name: {**settings} for name, settings in JOBS.items()}
    jobs["continued"] = {
        "lora": {"r": 4, "lora_alpha": 8, "init_adapter": start},
        "training": TRAINING,
        "rows": token_rows(11, seed=9),
    }
    twice, once = token_rows(7, seed=10), token_rows(5, seed=11)
    jobs["mixed"] = {"lora": {"r": 4}, "training": TRAINING, "rows": [*twice, *twice, *once]}
    entries = [
        job(tmp_path, tiny_base, name, s["rows"], lora=s["lora"], training=s["training"]) for name, s in jobs.items()
    ]
    write_rows(tmp_path / "twice.jsonl", twice)
    write_rows(tmp_path / "once.jsonl", once)
    entries[-1]["dataset"] = [
        {"path": "twice.jsonl", "format": "tokens", "weight": 2},
        {"path": "once.jsonl", "format": "tokens"},
    ]
    done = served.run("run", write_jobs(tmp_path, entries))
    assert done.returncode == 0, done.stdout + done.stderr

    base = tiny_hooked()
    for name, settings in jobs.items():
        spec = make_spec(tmp_path / "oracle", name, settings["rows"], settings["lora"], settings["training"])
        output = tmp_path / "out" / name
        if spec.lora.init_adapter:
            begin = saved(start)
        else:
            weights = base.new_adapter(spec.lora)
            weights.initialise(spec.training.seed)
            begin = adapter_tensors(weights)
        theirs, log = train_alone(tiny_model(), spec, settings["rows"], begin)
        assert len(log) == len(metric_rows(output)) >= 13
        assert largest_difference(begin, theirs) > 1e-3, "the oracle did not train"
        assert largest_difference(saved(output), theirs) < 1e-4
        assert sorted(path.name for path in output.iterdir()) == [
            "adapter_config.json",
            "adapter_model.safetensors",
            "checksums.json",
            "job.yaml",
            "metrics.jsonl",
        ]


def test_jobs_that_fail_end_alone_and_the_others_are_bit_identical(tmp_path, tiny_base, served):
    """A NaN loss, a broken line of data and a job cancelled half-way, beside two jobs that must not notice."""
    lora = {"r": 4, "lora_dropout": 0.1}
    good = [
        job(tmp_path, tiny_base, "one", token_rows(13, seed=1), lora=lora, training={**TRAINING, "max_steps": 60}),
        job(
            tmp_path,
            tiny_base,
            "two",
            token_rows(9, seed=2, high=70),
            lora={"r": 16},
            training={**TRAINING, "max_steps": 60},
        ),
    ]
    start = peft_start(tmp_path / "start", tiny_base)
    tensors = load_file(f"{start}/adapter_model.safetensors")
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, f"{start}/adapter_model.safetensors")
    bad = [
        job(tmp_path, tiny_base, "nan", token_rows(8), lora={"r": 4, "init_adapter": start}, training=TRAINING),
        job(tmp_path, tiny_base, "broken", token_rows(3), training=TRAINING),
        job(tmp_path, tiny_base, "endless", token_rows(8), lora=lora, training={**TRAINING, "max_steps": 10**6}),
    ]
    with (tmp_path / "broken.jsonl").open("a") as file:
        file.write('{"input_ids": [5, 6\n')

    running = served.start(*LORAY, "run", write_jobs(tmp_path, [*bad, *good]), log="run")
    wait_until(lambda: (tmp_path / "out" / "endless" / "metrics.jsonl").exists())
    wait_until(lambda: len(metric_rows(tmp_path / "out" / "endless")) > 5)
    done = served.run("cancel", "endless")
    assert done.returncode == 0, done.stderr
    output = served.wait_for("/out/two", running, log="run")
    assert running.wait(120) == 1
    output = (served.path / "run").read_text()
    assert "the loss became nan at optimizer step 1" in output
    assert "broken.jsonl:4" in output
    assert output.count("CANCELLED") >= 1
    for name in ("nan", "broken", "endless"):
        assert not (tmp_path / "out" / name / "adapter_model.safetensors").exists()

    (tmp_path / "out").rename(tmp_path / "out-in-company")
    assert served.run("run", write_jobs(tmp_path, good)).returncode == 0
    for name in ("one", "two"):
        alone, company = (
            tmp_path / folder / name / "adapter_model.safetensors" for folder in ("out", "out-in-company")
        )
        assert alone.read_bytes() == company.read_bytes()
        rows = [
            [{k: v for k, v in row.items() if k != "time"} for row in metric_rows(p.parent)] for p in (alone, company)
        ]
        assert rows[0] == rows[1]
