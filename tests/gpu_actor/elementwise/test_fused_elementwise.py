"""Norms, rotary embeddings and SwiGLUs that are replaced: the stock modules are the oracle."""

import pytest
import torch

from gpu_actor.elementwise.fuse import fuse_elementwise
from support.tiny import family_config, random_model

TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 1e-2}
# by family: norms, rotary embeddings, SwiGLUs of two layers
REPLACED = {
    "llama": (5, 2, 2),
    "qwen3": (9, 2, 2),
    "gemma2": (9, 2, 0),
    "phi3": (5, 2, 0),
    "olmo2": (9, 2, 2),
    "glm4": (9, 0, 0),  # neighbours in a head are turned together
    "gpt2": (0, 0, 0),
}


def frozen(family, dtype=torch.float32):
    model = random_model(family_config(family), dtype=dtype)
    for parameter in model.parameters():
        if parameter.dim() == 1:  # else every norm's weight is 1, or 0
            parameter.data.normal_(1.0, 0.3, generator=torch.Generator().manual_seed(1))
    return model.requires_grad_(False)


def replaced(model):
    return [module for module in model.modules() if "forward" in vars(module)]


@pytest.mark.parametrize("family", REPLACED)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_what_computes_the_same_is_replaced_and_nothing_else(family, dtype):
    assert tuple(fuse_elementwise(frozen(family, dtype), recompute=True).values()) == REPLACED[family]


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "olmo2"])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_values_and_gradients_are_those_of_the_stock_model(family, dtype):
    model, found = frozen(family, dtype), []
    given = model.get_input_embeddings()(torch.arange(3, 14)[None])
    for fused in (False, True):
        if fused:
            fuse_elementwise(model, recompute=True)
        leaf = given.clone().requires_grad_()
        hidden = model.model(inputs_embeds=leaf, use_cache=False).last_hidden_state
        weights = torch.cos(torch.arange(hidden.numel())).view(hidden.shape)
        found.append((hidden.detach(), *torch.autograd.grad((hidden * weights).sum(), leaf)))
    for stock, ours in zip(*found, strict=True):
        assert float((stock - ours).norm() / stock.norm()) < TOLERANCE[dtype] * 3


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("width", [7, 64, 100])
def test_a_row_is_the_same_to_the_bit_in_any_company(threads, width):
    """Rows of an odd width, in a batch large enough for two threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        model = frozen("llama")
        norm = model.model.norm
        norm.weight = torch.nn.Parameter(torch.rand(width), requires_grad=False)
        assert fuse_elementwise(norm, recompute=False)["norms"] == 1
        rows, grads = torch.randn(2, 900, width, generator=torch.Generator().manual_seed(0))

        def both(start, end):
            leaf = rows[start:end].clone().requires_grad_()
            out = norm(leaf)
            return torch.cat([out, *torch.autograd.grad(out, leaf, grads[start:end])], dim=-1)

        whole = both(0, 900)
        for start, end in ((0, 1), (1, 3), (17, 18), (3, 90), (90, 900)):
            assert torch.equal(both(start, end), whole[start:end])
    finally:
        torch.set_num_threads(before)


def test_a_norm_that_computes_otherwise_stays():
    model = frozen("llama")
    kind = type(model.model.norm)

    class Centred(kind):
        def forward(self, hidden_states):
            return super().forward(hidden_states - hidden_states.mean(-1, keepdim=True))

    for module in model.modules():
        if type(module) is kind:
            module.__class__ = Centred
    assert fuse_elementwise(model, recompute=True)["norms"] == 0
    assert not [module for module in replaced(model) if isinstance(module, kind)]


def test_swiglu_keeps_two_tensors_where_autograd_keeps_three():
    model, kept = frozen("llama"), []
    rows = torch.randn(1, 9, model.config.hidden_size, requires_grad=True)
    mlp = model.model.layers[0].mlp
    for fused in (False, True):
        if fused:
            fuse_elementwise(model, recompute=True)
        seen = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor, seen=seen: seen.setdefault(tensor.data_ptr(), tensor), lambda tensor: tensor
        ):
            mlp(rows)
        wide = [tensor for tensor in seen.values() if tensor.shape == (1, 9, model.config.intermediate_size)]
        kept.append(len(wide))
    assert kept == [3, 2]
