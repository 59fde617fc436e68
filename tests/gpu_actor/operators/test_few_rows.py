"""The product of a few rows, and functions of autograd without gradients: the arithmetic of the plain ones."""

import pytest
import torch
from torch.nn import functional as F

from gpu_actor.elementwise.rms_norm import RmsNorm
from gpu_actor.operators.few_rows import MOST_ROWS, are_few, few_rows_product


@pytest.mark.parametrize("rows", [1, 2, MOST_ROWS])
@pytest.mark.parametrize("transposed", [False, True], ids=["linear", "conv1d"])
def test_few_rows_are_multiplied_as_by_a_linear_layer(rows, transposed):
    torch.manual_seed(0)
    x, bias = torch.randn(rows, 40), torch.randn(24)
    weight = torch.randn(40, 24).t() if transposed else torch.randn(24, 40)
    assert are_few(x)
    out = few_rows_product(x, weight, bias)
    assert out.is_contiguous()
    torch.testing.assert_close(out, F.linear(x, weight, bias))
    torch.testing.assert_close(few_rows_product(x, weight, None), F.linear(x, weight))


@pytest.mark.parametrize("x", [torch.zeros(MOST_ROWS + 1, 4), torch.zeros(2, 4, dtype=torch.bfloat16)])
def test_many_rows_and_other_number_formats_are_not_few(x):
    assert not are_few(x)


def test_a_forward_without_gradients_has_the_same_bits():
    torch.manual_seed(0)
    norm, x = RmsNorm(torch.randn(24), torch.full((), 1e-5), torch.float32), torch.randn(5, 24, requires_grad=True)
    with torch.no_grad():
        found = norm(x)
    assert not found.requires_grad
    assert torch.equal(found, norm(x))
