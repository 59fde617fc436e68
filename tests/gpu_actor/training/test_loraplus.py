"""LoRA+ trains the parameters in the groups, and at the rates, of PEFT's create_loraplus_optimizer."""

import pytest
import torch
from peft.optimizers import create_loraplus_optimizer

from gpu_actor.batch.shared_batch import pack
from gpu_actor.contract.config import TrainingConfig
from gpu_actor.contract.lora_config import LoraConfig
from gpu_actor.training.optimizer import make_optimizer
from gpu_actor.training.trainer import CoTrainer
from support.engine import flat, losses_of, make_spec, make_tenant, micro_batch, run_all, tiny_hooked
from support.oracle import adapter_tensors, largest_difference, metric_rows, peft_model, peft_tensor, same_bytes
from support.tiny import tiny_model, token_rows

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "lora",
    [{"r": 4}, {"r": 4, "use_dora": True, "target_modules": ["q_proj", "up_proj"]}, {"peft_type": "VERA", "r": 16}],
)
def test_a_run_equals_peft_in_fp64(lora):
    base = tiny_hooked(dtype=torch.float64)
    weights = base.new_adapter(LoraConfig(**lora))
    weights.initialise(3)
    training = TrainingConfig(learning_rate=2e-3, loraplus_lr_ratio=16.0, weight_decay=0.1)
    optimizer = make_optimizer(weights, training)
    alone = peft_model(tiny_model(dtype=torch.float64), weights.lora, adapter_tensors(weights))
    theirs = create_loraplus_optimizer(
        alone, torch.optim.AdamW, lr=2e-3, loraplus_lr_ratio=16.0, loraplus_weight_decay=0.1
    )
    start = adapter_tensors(weights)
    for step in range(5):
        batch = pack([micro_batch(weights, [12], step)], CPU)
        weights.zero_grad()
        losses_of(base, batch)[0].backward()
        optimizer.step()
        ids = torch.tensor(micro_batch(weights, [12], step).sequences[0].astype("int64"))[None]
        theirs.zero_grad()
        torch.nn.functional.cross_entropy(alone(input_ids=ids).logits[0, :-1], ids[0, 1:], reduction="sum").backward()
        theirs.step()
    peft = {key: peft_tensor(alone, *key).detach() for key in start}
    assert largest_difference(start, peft) > 1e-2
    assert largest_difference(adapter_tensors(weights), peft) < 1e-10


def test_clip_schedule_and_resume_cover_both_rates(tmp_path):
    """Interrupted at step 4 and resumed, it gives the bytes of a run that was not; the logged rate is that of A."""
    base = tiny_hooked()
    settings = {"loraplus_lr_ratio": 8.0, "learning_rate": 1e-3, "max_steps": 8, "lr_scheduler_type": "cosine"}
    settings |= {"max_grad_norm": 0.5, "per_device_train_batch_size": 2}

    def tenant(folder, attempt=1):
        return make_tenant(base, make_spec(folder, "job", token_rows(9), {"r": 4}, settings), attempt)

    whole = tenant(tmp_path / "whole")
    run_all(base, [whole])
    part = tenant(tmp_path / "part")
    trainer = CoTrainer(base)
    trainer.attach(part)
    while part.progress.step < 4:
        trainer.step()
    trainer.detach("job", keep=True)
    again = tenant(tmp_path / "part", attempt=2)
    assert again.progress.step == 4
    rates = [group["lr"] for group in again.optimizer.param_groups]
    assert rates[1] == pytest.approx(8 * rates[0])
    run_all(base, [again])
    assert same_bytes(flat(again), flat(whole))
    assert metric_rows(whole.output_dir)[0]["learning_rate"] == pytest.approx(1e-3)
