"""Clipping several adapters at once is clipping each by itself."""

import math

import pytest
import torch

from gpu_actor.training.clip import clip_together


@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_each_gradient_is_clipped_by_its_own_norm(scale):
    """Large, small, zero, unlimited; one that is no number, and one whose loss is none, mark themselves alone."""
    generator = torch.Generator().manual_seed(0)
    sizes, limits = [3.0, 0.01, 0.0, 5.0, math.nan, 1.0], [1.0, 1.0, 0.5, math.inf, 1.0, 1.0]
    gradients = [size * torch.randn(40 + i, generator=generator) for i, size in enumerate(sizes)]
    losses = [torch.tensor(loss) for loss in (1.0, 2.0, 3.0, 4.0, 5.0, math.inf)]
    clips = clip_together([gradient * scale for gradient in gradients], losses, limits, scale)
    assert [float(clip.bad) for clip in clips] == [0, 0, 0, 0, 1, 1]
    for gradient, limit, clip in list(zip(gradients, limits, clips, strict=True))[:4]:
        parameter = torch.nn.Parameter(torch.zeros_like(gradient))
        parameter.grad = gradient.clone()
        norm = torch.nn.utils.clip_grad_norm_([parameter], limit)
        torch.testing.assert_close(clip.norm, norm)
        torch.testing.assert_close(gradient * scale / clip.divisor, parameter.grad)
