"""Packed rows: every sequence sees itself alone, and the loss counts exactly the labelled tokens."""

import numpy as np
import pytest
import torch

from gpu_actor.batch.shared_batch import MicroBatch, count_loss_tokens, pack
from gpu_actor.model import base_model
from gpu_actor.model.attention import packed_attention
from gpu_actor.model.base_model import BaseModel
from support.engine import losses_of, micro_batch, tiny_hooked
from support.tiny import tiny_model

CPU = torch.device("cpu")


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
def test_packed_logits_equal_separate_runs_of_the_stock_model(kind):
    """Mistral's window of 7 is shorter than the sequences."""
    base = tiny_hooked(kind, dtype=torch.float64)
    stock = tiny_model(kind, dtype=torch.float64)
    lengths = [3, 30, 1, 12]
    packed = base.logits(pack([micro_batch(None, lengths)], CPU)).split(lengths)
    for logits, sequence in zip(packed, micro_batch(None, lengths).sequences, strict=True):
        expected = stock(torch.tensor(sequence.astype("int64"))[None]).logits[0]
        torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_attention_against_its_formula(window, softcap):
    torch.manual_seed(0)
    lengths = (6, 1, 9)
    query = torch.randn(1, 4, 16, 8, dtype=torch.float64)
    key, value = torch.randn(2, 1, 2, 16, 8, dtype=torch.float64)
    found = packed_attention(query, key, value, lengths, scaling=0.3, sliding_window=window, softcap=softcap)
    start = 0
    for length in lengths:
        for head in range(4):
            for i in range(length):
                first = 0 if window is None else max(0, i - window + 1)
                rows = slice(start + first, start + i + 1)
                scores = key[0, head // 2, rows] @ query[0, head, start + i] * 0.3
                scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
                expected = scores.softmax(0) @ value[0, head // 2, rows]
                torch.testing.assert_close(found[0, start + i, head], expected)
        start += length


def test_lengths_that_do_not_tile_the_row_are_refused():
    tensor = torch.zeros(1, 2, 5, 4)
    with pytest.raises(ValueError, match="add up to 4, the packed row has 5"):
        packed_attention(tensor, tensor, tensor, (1, 3))


def test_loss_counts_labelled_tokens_and_nothing_else():
    """Against a reference that masks by hand: prompts, first tokens and neighbours carry no loss."""
    base = tiny_hooked(dtype=torch.float64)
    ids = [np.array([5, 6, 7, 8, 9], dtype=np.int32), np.array([11, 12, 13], dtype=np.int32)]
    labels = [np.array([5, -100, 7, -100, 9], dtype=np.int32), np.array([-100, -100, 13], dtype=np.int32)]
    batch = pack([micro_batch(None, [20], 3), MicroBatch(None, ids, labels, loss_scale=0.5)], CPU)
    loss = float(losses_of(base, batch)[1].detach())
    stock = tiny_model(dtype=torch.float64)
    expected = 0.0
    for sequence, wanted in ((ids[0], [2, 4]), (ids[1], [2])):
        log_p = stock(torch.tensor(sequence.astype("int64"))[None]).logits[0].log_softmax(-1).detach()
        expected -= sum(float(log_p[place - 1, int(sequence[place])]) for place in wanted)
    assert loss == pytest.approx(0.5 * expected, rel=1e-12)
    assert count_loss_tokens(labels) == 3


def test_loss_in_chunks_equals_loss_at_once(monkeypatch):
    from gpu_actor.contract.lora_config import LoraConfig
    from gpu_actor.losses import token_losses

    base = tiny_hooked(dtype=torch.float64)
    found = []
    for chunk in (1000, 7):
        monkeypatch.setattr(token_losses, "LOSS_CHUNK", chunk)
        weights = base.new_adapter(LoraConfig(r=4))
        weights.initialise(0)
        batch = pack([micro_batch(weights, [30, 25])], CPU)
        (loss,) = losses_of(base, batch)
        loss.backward()
        found.append((float(loss.detach()), weights.gradient))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-13)
    assert found[0][1].any()
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-9, atol=1e-12)


def test_a_segment_without_labels_has_no_loss():
    base = tiny_hooked()
    ids = [np.array([5, 6, 7], dtype=np.int32)]
    batch = pack([MicroBatch(None, ids, [np.full(3, -100, dtype=np.int32)]), micro_batch(None, [9])], CPU)
    losses = losses_of(base, batch)
    assert float(losses[0]) == 0.0
    assert float(losses[1]) > 0.0


def test_the_base_models_own_dropout_is_switched_off_and_said():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=128, n_embd=32, n_layer=2, n_head=2, n_positions=64))
    base = BaseModel.serve("gpt2", model)
    assert "dropout (p=0.1) is switched off" in base.remarks[0]
    assert base.new_adapter(base_model.LoraConfig(r=2)).transposed
