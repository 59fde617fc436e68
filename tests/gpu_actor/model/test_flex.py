"""Capped attention of a whole packed row in one call, without a GPU."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention.flex_attention import create_block_mask

from gpu_actor.batch.blocked_row import BLOCK, BlockedRow
from gpu_actor.batch.parcel import Parcel
from gpu_actor.batch.shared_batch import pack
from gpu_actor.model import flex
from gpu_actor.model.attention import packed_attention
from gpu_actor.model.base_model import BaseModel
from gpu_actor.model.flex import CappedAttention
from gpu_actor.model.freeze import freeze
from support.engine import micro_batch
from support.tiny import family_model

CPU = torch.device("cpu")
SCALE, CAP = 0.3, 5.0
ROWS = [(1,), (BLOCK, 1, BLOCK + 1, 60), (5, 0, 400)]
WINDOWS = [None, 1, 7, BLOCK, BLOCK + 1, 300]


def heads_of(row, seed=0, dtype=torch.float32, heads=(4, 2), sizes=(24, 16)):
    """Query, key and value of a row, and a gradient of what attention makes of them."""
    torch.manual_seed(seed)
    shapes = ((heads[0], sizes[0]), (heads[1], sizes[0]), (heads[1], sizes[1]))
    query, key, value = (torch.randn(1, count, sum(row), size, dtype=dtype) for count, size in shapes)
    return query, key, value, torch.randn(1, sum(row), heads[0], sizes[1], dtype=dtype)


def with_gradients(attend, query, key, value, gradient):
    """The output, and the gradients of query, key and value."""
    parts = [part.clone().requires_grad_() for part in (query, key, value)]
    out = attend(*parts)
    out.backward(gradient)
    return [out.detach(), *(part.grad for part in parts)]


def in_one_call(row, window):
    return lambda *parts: CappedAttention(compiles=False)(*parts, row, SCALE, window, CAP)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("row", ROWS)
def test_the_operator_is_attention_sequence_by_sequence(row, window):
    parts = heads_of(row)
    found = with_gradients(in_one_call(row, window), *parts)
    expected = with_gradients(lambda *parts: packed_attention(*parts, row, SCALE, window, CAP), *parts)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("row", ROWS)
def test_the_tables_of_blocks_are_those_that_torch_makes_of_the_mask(row, window):
    *tables, first = BlockedRow(row, CPU).seen(window)
    first = first.flatten()
    expected = create_block_mask(
        lambda _b, _h, q, k: (k <= q) & (k >= first[q]), None, None, len(first), len(first), device="cpu"
    )
    names = ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices")
    names += tuple(name.replace("kv", "q") for name in names)
    for name, table in zip(names, tables, strict=True):
        torch.testing.assert_close(table, getattr(expected, name), rtol=0, atol=0, msg=name)


def block_by_block(query, key, value, score_mod, mask, scale, *, enable_gqa, kernel_options):
    """What torch's kernels make: of each block of queries the listed blocks of keys whole, with zeros where masked."""
    assert enable_gqa
    groups = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(groups, dim=1).split(BLOCK, dim=2) for part in (key, value))
    outputs = []
    for number, queries in enumerate(query.split(BLOCK, dim=2)):
        counts = mask.kv_num_blocks[0, 0, number], mask.full_kv_num_blocks[0, 0, number]
        partly = mask.kv_indices[0, 0, number, : counts[0]].tolist()
        listed = partly + mask.full_kv_indices[0, 0, number, : counts[1]].tolist()
        asking = torch.arange(BLOCK * number, BLOCK * (number + 1))[:, None]
        scores = []
        for other in listed:
            asked = torch.arange(BLOCK * other, BLOCK * (other + 1))[None, :]
            score = score_mod(queries @ key[other].transpose(2, 3) * scale, 0, 0, asking, asked)
            seen = mask.mask_mod(0, 0, asking, asked) if other in partly else torch.ones(()).bool()
            scores.append(score.masked_fill(~seen, float("-inf")))
        weights = torch.cat(scores, dim=3).softmax(dim=3)
        outputs.append(weights @ torch.cat([value[other] for other in listed], dim=2))
    return torch.cat(outputs, dim=2)


@pytest.mark.parametrize("what", ["query", "key", "value", "gradient"])
@pytest.mark.parametrize("window", [None, 90])
def test_a_neighbours_nan_changes_no_bit(what, window, monkeypatch):
    """Zero times NaN is NaN, so a kernel's blocks must not hold tokens of two sequences."""
    monkeypatch.setattr(flex, "_uncompiled", block_by_block)
    row, bad = (40, 300, 9, 130), slice(40, 340)
    parts = heads_of(row)
    clean = with_gradients(in_one_call(row, window), *parts)
    expected = with_gradients(lambda *parts: packed_attention(*parts, row, SCALE, window, CAP), *parts)
    poisoned = dict(zip(("query", "key", "value", "gradient"), heads_of(row), strict=True))
    places = poisoned[what][0] if what == "gradient" else poisoned[what][0].transpose(0, 1)
    places[bad.start + 100] = float("nan")
    found = with_gradients(in_one_call(row, window), *poisoned.values())
    assert any(bool(part.isnan().any()) for part in found)
    for place, (one, other, oracle) in enumerate(zip(found, clean, expected, strict=True)):
        one, other, oracle = (part if place == 0 else part.transpose(1, 2) for part in (one, other, oracle))
        torch.testing.assert_close(other, oracle, rtol=1e-5, atol=1e-5)
        for mine in (slice(0, bad.start), slice(bad.stop, None)):
            assert torch.equal(one[:, mine], other[:, mine])


def test_the_backward_keeps_nothing_for_pairs_of_tokens():
    kept = {}
    for tokens in (2 * BLOCK, 4 * BLOCK):
        sizes = []
        query, key, value, _ = heads_of((tokens,))
        with torch.autograd.graph.saved_tensors_hooks(
            lambda one, to=sizes: to.append(one.numel()) or one, lambda one: one
        ):
            in_one_call((tokens,), None)(query.requires_grad_(), key, value)
        kept[tokens] = sum(sizes)
    assert kept[4 * BLOCK] < 2.01 * kept[2 * BLOCK]


FOUR_LAYERS = {"num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2}
LENGTHS = [3, 30, 1, 12]


@pytest.fixture
def no_varlen(monkeypatch):
    """A CPU has no such kernel."""
    monkeypatch.setattr("gpu_actor.model.body.has_varlen", lambda _: False)


def served_as_on_a_gpu(model):
    freeze(model)
    base = BaseModel("tiny", model, kernels="cuda")
    base.body.pack().close()
    return base


def two_jobs():
    return pack([micro_batch(None, LENGTHS[:2]), micro_batch(None, LENGTHS[2:], seed=1)], CPU)


@pytest.mark.usefixtures("no_varlen")
@pytest.mark.parametrize(
    ("family", "changes", "calls"),
    [
        ("gemma2", {"dtype": torch.bfloat16, **FOUR_LAYERS}, 4),
        ("gemma2", {"dtype": torch.float16}, 2),
        ("gemma2", {"dtype": torch.float32}, 0),
        ("gemma2", {"dtype": torch.bfloat16, "head_dim": 8}, 0),
        ("qwen2", {"dtype": torch.bfloat16}, 0),
    ],
)
def test_every_layer_makes_one_call_and_a_row_one_mask_for_each_window(family, changes, calls, monkeypatch):
    seen, sent = [], []
    operator, send = flex._uncompiled, Parcel.send
    monkeypatch.setattr(flex, "_uncompiled", lambda *parts, **more: seen.append(parts) or operator(*parts, **more))
    base, batch = served_as_on_a_gpu(family_model(family, **changes)), two_jobs()
    with torch.no_grad():
        monkeypatch.setattr(Parcel, "send", lambda parcel, device: sent.append(parcel) or send(parcel, device))
        found = [base.hidden(batch), base.hidden(batch)]
        assert len(seen) == 2 * calls
        assert len(sent) == (3 if calls else 0)  # where the tokens go, and what they see in each of two windows
        monkeypatch.setattr("gpu_actor.model.attention.serves_flex", lambda *_: False)
        expected = base.hidden(batch)
    assert len(seen) == 2 * calls
    for hidden in found:
        torch.testing.assert_close(hidden, expected, rtol=0, atol=0.1 if calls else 0)


@pytest.mark.slow
@pytest.mark.usefixtures("no_varlen")
def test_a_base_with_capped_scores_is_packed_as_on_a_gpu():
    """The probe at load finds its own outputs, and no bit that follows the neighbours."""
    base = BaseModel.serve("tiny", family_model("gemma2", dtype=torch.bfloat16), kernels="cuda")
    assert base.packed


def test_on_cuda_what_is_called_is_compiled_for_its_heads(monkeypatch):
    asked = []

    def compiled(*signature):
        asked.append(signature)
        return lambda query, key, value, *seen: query.new_empty(1, query.shape[1] * BLOCK, 8, value.shape[4])

    monkeypatch.setattr(flex, "compiled", compiled)
    monkeypatch.setattr(Parcel, "send", sent_nowhere)
    with FakeTensorMode(), torch.no_grad():
        query, key, value = (
            torch.empty(1, count, 46, size, device="cuda", dtype=torch.bfloat16)
            for count, size in ((8, 256), (4, 256), (4, 64))
        )
        out = CappedAttention(compiles=True)(query, key, value, (3, 30, 1, 12), None, 7, 50.0)
    assert (out.shape, out.device.type, out.dtype) == ((1, 46, 8, 64), "cuda", torch.bfloat16)
    assert asked == [(query.device, torch.bfloat16, (8, 4), (256, 64), 1 / 16, 50.0)]


def sent_nowhere(parcel, device):
    """Fake tensors in place of what a parcel brings to a GPU."""
    return [torch.empty(array.shape, dtype=torch.int64, device=device) for array in parcel._arrays]


@pytest.fixture
def fresh():
    flex.compiled.cache_clear()
    yield
    flex.compiled.cache_clear()


@pytest.mark.usefixtures("no_varlen", "fresh")
def test_where_nothing_can_be_compiled_each_sequence_is_computed_and_one_warning_says_so(monkeypatch, caplog):
    tries = []

    def compiler(*_, **__):
        tries.append(1)
        raise RuntimeError("no C compiler")

    monkeypatch.setattr("gpu_actor.model.body.CappedAttention", lambda compiles: CappedAttention(compiles=True))
    monkeypatch.setattr(torch, "compile", lambda *_, **__: compiler)
    base, batch = served_as_on_a_gpu(family_model("gemma2", dtype=torch.bfloat16)), two_jobs()
    with torch.no_grad():
        found = [base.hidden(batch) for _ in range(2)]
        monkeypatch.setattr("gpu_actor.model.attention.serves_flex", lambda *_: False)
        expected = base.hidden(batch)
    assert all(torch.equal(hidden, expected) for hidden in found)
    (warning,) = caplog.records
    assert "no C compiler" in warning.getMessage()
    assert len(tries) == 2  # torch's own tiles, and small ones


@pytest.mark.slow
@pytest.mark.usefixtures("fresh")
def test_no_row_is_compiled_for_its_length(monkeypatch):
    torch._dynamo.reset()  # it keeps no more than a few programs of one function
    counter, compile_ = CompileCounterWithBackend("aot_eager"), torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **more: compile_(function, backend=counter, **more))
    monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda *_: None)  # no gradient on a CPU
    attention = CappedAttention(compiles=True)
    rows = [((1,), None), ((300, 1, 60), 7), ((300,), 200), ((5, 700, 129), None), ((128, 1), None)]
    bases = [(1, SCALE, CAP, row) for row in rows] + [(2, 0.2, 7.0, row) for row in rows[:2]]
    for number, scale, cap, (row, window) in bases:
        parts, settings = heads_of(row), (row, scale, window, cap)
        found = with_gradients(lambda *parts, at=settings: attention(*parts, *at), *parts)
        expected = with_gradients(lambda *parts, at=settings: packed_attention(*parts, *at), *parts)
        with torch.no_grad():
            found.append(attention(*parts[:3], *settings))
        for one, other in zip(found, [*expected, expected[0]], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
        assert counter.frame_count == 2 * number  # one that trains, one without gradients
