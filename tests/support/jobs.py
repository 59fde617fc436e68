"""Jobs that differ in everything, for the comparisons with Trainer."""

from support.tiny import token_rows

# Four jobs that differ in data, lengths, rank, alpha, targets, rate, schedule, batch, accumulation, decay, clip.
JOBS = {
    "plain": {
        "lora": {"r": 4, "lora_alpha": 8},
        "training": {
            "learning_rate": 1e-3,
            "num_train_epochs": 5,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
        },
        "rows": token_rows(13, seed=1),
    },
    "wide": {
        "lora": {"r": 16, "lora_alpha": 10, "target_modules": ["q_proj", "v_proj"], "use_rslora": True},
        "training": {
            "learning_rate": 2e-3,
            "max_steps": 17,
            "per_device_train_batch_size": 3,
            "gradient_accumulation_steps": 3,
            "lr_scheduler_type": "cosine",
            "warmup_ratio": 0.2,
            "weight_decay": 0.1,
        },
        "rows": token_rows(20, seed=2, low=20, high=60),
    },
    "regex": {
        "lora": {"r": 3, "lora_alpha": 6, "target_modules": r".*\.1\.mlp\.(up|down)_proj"},
        "training": {
            "learning_rate": 5e-3,
            "max_steps": 20,
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": 4,
            "lr_scheduler_type": "constant_with_warmup",
            "warmup_steps": 5,
            "max_grad_norm": 0.05,
            "shuffle": True,
            "seed": 7,
        },
        "rows": token_rows(9, seed=3, low=3, high=9),
    },
    "unmasked": {
        "lora": {"r": 8, "lora_alpha": 8},
        "training": {
            "learning_rate": 5e-4,
            "num_train_epochs": 2.5,
            "per_device_train_batch_size": 5,
            "gradient_accumulation_steps": 1,
            "lr_scheduler_type": "constant",
            "max_grad_norm": 0.0,
            "seed": 123,
        },
        "rows": token_rows(31, seed=4, prompt=False),
    },
}
