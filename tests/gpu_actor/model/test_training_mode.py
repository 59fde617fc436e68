"""The training forward is Trainer's: a base whose training mode computes something else is served in it, or says so."""

import pytest
import torch

from gpu_actor.batch.shared_batch import pack
from gpu_actor.model.base_model import BaseModel
from gpu_actor.model.describe import describe_base
from support.engine import micro_batch
from support.tiny import random_model, tiny_model


def with_training_path(change):
    """A tiny model whose first layer changes its input in training mode only."""
    model = tiny_model()
    layer = model.model.layers[0]
    layer.register_forward_pre_hook(lambda _, args: (change(args[0]), *args[1:]) if layer.training else args)
    return model


def test_a_training_path_that_is_always_the_same_is_what_jobs_are_trained_on():
    base = BaseModel.serve("tiny", with_training_path(lambda hidden: 1.5 * hidden))
    assert base.packed
    assert "it is served in training mode, as Trainer trains it" in base.remarks[0]
    batch = pack([micro_batch(None, [9, 14])], base.device)
    stock = with_training_path(lambda hidden: 1.5 * hidden).train()
    for ids, logits in zip(batch.input_ids[0].split([9, 14]), base.logits(batch).split([9, 14]), strict=True):
        torch.testing.assert_close(logits, stock(ids[None]).logits[0].detach(), rtol=0, atol=1e-5)


def test_a_training_path_that_draws_random_numbers_is_left_out_and_said(tmp_path):
    """Mixtral's router jitter; and the draws of the question leave the process's random numbers alone."""
    from transformers import MixtralConfig

    config = MixtralConfig(
        vocab_size=128, hidden_size=32, intermediate_size=56, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, router_jitter_noise=0.1, pad_token_id=0,
    )  # fmt: skip
    model = random_model(config)
    state = torch.get_rng_state()
    base = BaseModel.serve("jitter", model)
    assert torch.equal(torch.get_rng_state(), state)
    assert "draws random numbers and computes other logits" in base.remarks[0]
    assert not model.training
    config.save_pretrained(str(tmp_path))  # `loray plan` says so before the weights are there
    foreseen = describe_base(str(tmp_path)).training_mode
    assert foreseen.startswith(
        "by a small random copy: its training mode, in which Trainer runs it, draws random numbers"
    )


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_model_without_a_training_path_says_nothing(kind):
    base = BaseModel.serve(kind, tiny_model(kind) if kind == "llama" else random_model(small_gpt2()))
    assert not [remark for remark in base.remarks if "training mode" in remark]
    assert not base.model.training


def small_gpt2():
    from transformers import GPT2Config

    return GPT2Config(vocab_size=128, n_embd=32, n_layer=2, n_head=2, n_positions=64)
