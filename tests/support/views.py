"""A job and an actor as the controller shows them."""


def view(**changes):
    """A running job as the controller shows it."""
    spec = {
        "dataset": {"path": "/data/a.jsonl", "format": "alpaca"},
        "lora": {"r": 8, "lora_alpha": 16, "lora_dropout": 0.05, "target_modules": ["q_proj", "v_proj"]},
        "training": {
            "learning_rate": 2e-4,
            "lr_scheduler_type": "cosine",
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 2,
            "seed": 7,
        },
    }
    job = {
        "id": "j-1",
        "name": "alpaca-r8",
        "state": "RUNNING",
        "base_model": "org/model",
        "priority": 0,
        "submitted_at": 1000.0,
        "started_at": 1010.0,
        "finished_at": None,
        "actor": "model@cpu",
        "attempt": 1,
        "retries": 0,
        "reason": None,
        "waiting_for": None,
        "step": 12,
        "total_steps": 300,
        "epoch": 0.5,
        "loss": 1.23456,
        "eval_loss": None,
        "learning_rate": 1e-4,
        "tokens": 12345,
        "tokens_per_s": 812.4,
        "eta_s": 190.0,
        "samples": 40,
        "truncated": 0,
        "dropped": 0,
        "unread_columns": "",
        "shortened": 0,
        "unreached": "",
        "unsaved": "",
        "loss_curve": [],
        "forecast": None,
        "output_dir": "/out/alpaca-r8",
        "spec": spec,
    }
    return {**job, **changes}


def actor(**changes):
    """A ready actor as the controller shows it."""
    base = {
        "name": "model@cpu",
        "state": "ready",
        "base_model": "org/model",
        "device": "cpu",
        "node_id": "n",
        "memory_limit": 4 * 2**30,
        "memory_used": 2**30,
        "memory_peak": 2 * 2**30,
        "base_bytes": 1,
        "tokens_per_s": 1500.0,
        "step_seconds": 0.1,
        "batch_tokens": 512,
        "batch_adapters": 3,
        "jobs": ["alpaca-r8", "b"],
        "reason": None,
    }
    return {**base, **changes}
