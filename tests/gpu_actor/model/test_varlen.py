"""The one call of attention that a GPU makes for a whole packed row, without a GPU."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from gpu_actor.batch.shared_batch import pack
from gpu_actor.model import varlen
from gpu_actor.model.attention import packed_attention
from gpu_actor.model.base_model import BaseModel
from gpu_actor.model.freeze import freeze
from support.engine import micro_batch
from support.tiny import family_model, tiny_model

CPU = torch.device("cpu")
LENGTHS = [3, 30, 1, 12]


class VarlenCalls(TorchDispatchMode):
    """The arguments of every call of torch's kernel."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.torch_attn._varlen_attn.default:
            self.calls.append(args)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("window", "told"), [(None, [-1, 0]), (7, [6, 0]), (1, [0, 0])])
def test_a_row_on_cuda_is_one_call_of_torchs_kernel(window, told):
    with FakeTensorMode(), torch.no_grad(), VarlenCalls() as seen:
        query = torch.empty(1, 8, 46, 16, device="cuda", dtype=torch.bfloat16)
        key, value = (torch.empty(1, 2, 46, 16, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        borders = torch.empty(5, device="cuda", dtype=torch.int32)
        assert varlen.serves_varlen(query, value, None)
        out = varlen.varlen_attention(query, key, value, borders, 30, 0.3, window)
    assert (out.shape, out.device.type, out.dtype) == ((1, 46, 8, 16), "cuda", torch.bfloat16)
    ((_, _, _, starts, ends, longest, most, causal, scale, asked, grouped, *_),) = seen.calls
    assert starts is ends
    assert (longest, most, causal, scale, asked, grouped) == (30, 30, window is None, 0.3, told, True)


def by_its_definition(query, key, value, starts, ends, longest, most, *, scale, window_size, enable_gqa):
    """What torch documents of `varlen_attn`, row by row of a mask."""
    assert starts.dtype == torch.int32
    assert torch.equal(starts, ends)
    assert longest == most == int(starts.diff().max())
    place = torch.arange(query.shape[0])
    sequence = torch.bucketize(place, starts[1:], right=True)
    left, right = window_size
    behind = place[:, None] - place[None, :]
    seen = (sequence[:, None] == sequence[None, :]) & (behind >= -right) & ((behind <= left) | (left < 0))
    heads = (tensor.transpose(0, 1)[None] for tensor in (query, key, value))
    out = F.scaled_dot_product_attention(*heads, attn_mask=seen, scale=scale, enable_gqa=enable_gqa)
    return out[0].transpose(0, 1)


def served_as_on_a_gpu(model):
    freeze(model)
    base = BaseModel("tiny", model, kernels="cuda")
    base.body.pack().close()
    return base


@pytest.mark.parametrize(
    ("make", "windows"),
    [
        (lambda: tiny_model("llama", dtype=torch.bfloat16), [(-1, 0)] * 2),
        (lambda: tiny_model("mistral", dtype=torch.bfloat16), [(6, 0)] * 2),
        (lambda: family_model("qwen2", dtype=torch.float16), [(6, 0), (-1, 0)]),
        (lambda: family_model("gemma2", dtype=torch.bfloat16), []),  # capped scores
        (lambda: tiny_model("llama", dtype=torch.float32), []),
        (lambda: tiny_model("llama", dtype=torch.bfloat16, head_dim=12), []),
    ],
)
def test_every_layer_makes_one_call_and_gives_what_packed_attention_gives(make, windows, monkeypatch):
    calls = []

    def recorded(*rows, **settings):
        calls.append(settings["window_size"])
        return by_its_definition(*rows, **settings)

    monkeypatch.setattr(varlen, "varlen_attn", recorded)
    base = served_as_on_a_gpu(make())
    batch = pack([micro_batch(None, LENGTHS[:2]), micro_batch(None, LENGTHS[2:], seed=1)], CPU)
    with torch.no_grad():
        found = base.hidden(batch)
        assert calls == windows
        monkeypatch.setattr("gpu_actor.model.attention.serves_varlen", lambda *_: False)
        expected = base.hidden(batch)
    assert len(calls) == len(windows)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.05 if windows else 0)


@pytest.mark.parametrize("window", [None, 1, 4, 30, 99])
def test_its_oracle_is_attention_sequence_by_sequence(window, monkeypatch):
    monkeypatch.setattr(varlen, "varlen_attn", by_its_definition)
    torch.manual_seed(0)
    query = torch.randn(1, 4, 46, 8, dtype=torch.float64)
    key, value = torch.randn(2, 1, 2, 46, 8, dtype=torch.float64)
    borders = torch.tensor([0, 3, 33, 34, 46], dtype=torch.int32)
    found = varlen.varlen_attention(query, key, value, borders, 30, 0.3, window)
    expected = packed_attention(query, key, value, tuple(LENGTHS), 0.3, window)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
