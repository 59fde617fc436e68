"""Which norms, rotary embeddings and SwiGLUs of a stock model are replaced: those that compute the same.

Each kind of module is asked by its own code, once: on random numbers, forward and backward, in fp32 on the CPU. What
answers otherwise, or not at all, stays as it is. A model's names, weights and classes stay as well; only the instance's
`forward` is another one, and the class's own is the oracle.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from gpu_actor.elementwise.rms_norm import RmsNorm
from gpu_actor.elementwise.rotary_embedding import rotate
from gpu_actor.elementwise.swiglu import swiglu

_FORMATS = (
    torch.float32,
    torch.bfloat16,
    torch.float16,
)  # in fp64, stock norms compute in fp32: others than these would
_ROUNDING = 4e-6  # of the largest value: what two orders of the same fp32 arithmetic differ by
_ROTARY = "apply_rotary_pos_emb"
_Factor = Callable[[torch.Tensor], torch.Tensor]
# from the weight to what multiplies: LLaMA's; those that multiply before they round; Gemma's
_FACTORS: tuple[_Factor, ...] = (lambda w: w, lambda w: w.float(), lambda w: 1.0 + w.float())


def fuse_elementwise(model: nn.Module, *, recompute: bool) -> Mapping[str, int]:
    """Replace what is recognised, in place.

    Args:
        model: Frozen.
        recompute: SwiGLU too, which then takes one kernel more and a third less memory.

    Returns:
        How many of each kind were replaced.
    """
    count = {"norms": 0, "rotary embeddings": 0, "SwiGLUs": 0}
    known: dict[Any, Any] = {}

    def once(kind: Any, ask: Callable[[], Any]) -> Any:
        if kind not in known:
            known[kind] = ask()
        return known[kind]

    for module in model.modules():
        if "forward" in vars(module):  # accelerate's hooks, say
            continue
        settings = tuple((name, value) for name, value in vars(module).items() if isinstance(value, int | float | str))
        if _may_be_norm(module):
            factor = once((type(module), settings, module.weight.dtype), partial(_factor_of, module))
            if factor is not None:
                _set_forward(module, partial(_normed, module, RmsNorm(*_constants(module, factor))))
                count["norms"] += 1
        elif recompute and {"gate_proj", "up_proj", "down_proj", "act_fn"} <= module._modules.keys():
            if once((type(module), settings, type(module.act_fn)), partial(_is_swiglu, module)):
                _set_forward(module, partial(_gated, module))
                count["SwiGLUs"] += 1
        elif _has_rotary(module) and once(type(module), partial(_rotates, module)):
            _set_forward(module, MethodType(_with_rotary(module), module))
            count["rotary embeddings"] += 1
    return count


def _set_forward(module: nn.Module, forward: Callable[..., Any]) -> None:
    module.forward = forward  # type: ignore[method-assign]


def _may_be_norm(module: nn.Module) -> bool:
    """Whether it has one frozen vector, an eps, and takes rows alone."""
    weight = module._parameters.get("weight")
    takes = inspect.signature(type(module).forward).parameters
    alone = module._parameters.keys() == {"weight"} and not module._modules and len(takes) == 2
    vector = weight is not None and weight.dim() == 1 and weight.dtype in _FORMATS
    return alone and vector and isinstance(_eps(module), float)


def _eps(module: Any) -> float | None:
    return getattr(module, "variance_epsilon", getattr(module, "eps", None))


def _constants(module: Any, factor: _Factor) -> tuple[torch.Tensor, torch.Tensor, torch.dtype]:
    weight = module.weight.detach()
    return factor(weight), torch.full((), _eps(module) or 0.0, device=weight.device), weight.dtype  # type: ignore[arg-type]


def _normed(module: nn.Module, norm: RmsNorm, x: torch.Tensor) -> torch.Tensor:
    return norm(x) if x.dtype == norm.dtype else type(module).forward(module, x)


def _factor_of(module: Any) -> _Factor | None:
    """What the weight of a norm becomes before it multiplies; None if the norm is another function."""
    dtype: torch.dtype = module.weight.dtype
    with unset_fake_temporarily(), torch.enable_grad():
        fitting = [factor for factor in _FACTORS if _norm_agrees(module, factor)]
        if not fitting or dtype == torch.float32:
            return fitting[0] if fitting else None
        stand_in, x = _stand_in_norm(module, dtype)  # they differ in where they round
        expected = type(stand_in).forward(stand_in, x)
        if expected.dtype != dtype:
            return None
        errors = [
            float((RmsNorm(*_constants(stand_in, factor))(x) - expected).float().abs().sum()) for factor in fitting
        ]
        return fitting[errors.index(min(errors))]


def _norm_agrees(module: nn.Module, factor: _Factor) -> bool:
    stand_in, x = _stand_in_norm(module, torch.float32)
    return _agree(
        partial(type(stand_in).forward, stand_in), RmsNorm(*_constants(stand_in, factor)), x, x * 1e-3, x[0] + 1.0
    )


def _stand_in_norm(module: nn.Module, dtype: torch.dtype) -> tuple[Any, torch.Tensor]:
    """The same norm with a random weight on the CPU, and rows for it."""
    weight, x = _random(module.weight.shape[0], dtype=dtype), _random(3, module.weight.shape[0], dtype=dtype)  # type: ignore[index, arg-type]
    return _copy_with(module, "_parameters", {"weight": nn.Parameter(weight, requires_grad=False)}), x


def _gated(module: Any, x: torch.Tensor) -> torch.Tensor:
    return module.down_proj(swiglu(module.gate_proj(x), module.up_proj(x)))  # type: ignore[no-any-return]


def _is_swiglu(module: Any) -> bool:
    with unset_fake_temporarily(), torch.enable_grad():
        width = 24
        outer = {"gate_proj": lambda x: x[..., :width], "up_proj": lambda x: x[..., width:], "down_proj": lambda x: x}
        stand_in = _copy_with(module, "_modules", {**module._modules, **outer})
        rows = 5 * _random(6, 2 * width)
        return _agree(partial(type(module).forward, stand_in), partial(_gated, stand_in), rows)


def _has_rotary(module: nn.Module) -> bool:
    forward = type(module).forward
    return isinstance(forward, FunctionType) and {_ROTARY} <= {*forward.__code__.co_names} & forward.__globals__.keys()


def _rotary_of(module: nn.Module) -> Callable[..., Any]:
    """The fused function, but for what only a part of each head's values is rotated in."""
    stock = type(module).forward.__globals__[_ROTARY]

    def either(query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *rest: Any) -> Any:
        whole = query.shape[-1] == key.shape[-1] == cos.shape[-1] and query.dtype == key.dtype == cos.dtype
        return (rotate if whole and query.dtype in _FORMATS else stock)(query, key, cos, sin, *rest)

    return either


def _rotates(module: nn.Module) -> bool:
    with unset_fake_temporarily(), torch.enable_grad():
        x, angles = _random(1, 3, 7, 16), _random(2, 1, 7, 16)

        def both(function: Callable[..., Any], x: torch.Tensor) -> torch.Tensor:
            return torch.cat(function(x, 2 * x[:, :2], *angles), dim=1)

        return _agree(partial(both, type(module).forward.__globals__[_ROTARY]), partial(both, rotate), x)


def _with_rotary(module: nn.Module) -> FunctionType:
    """The forward of its class, for which the name of the rotary function means the fused one."""
    forward: Any = type(module).forward
    outer = {**forward.__globals__, _ROTARY: _rotary_of(module)}
    changed = FunctionType(forward.__code__, outer, forward.__name__, forward.__defaults__, forward.__closure__)
    changed.__kwdefaults__ = forward.__kwdefaults__
    return changed


def _copy_with(module: nn.Module, what: str, content: Mapping[str, Any]) -> Any:
    """A shallow copy of a module with other parameters or other children."""
    fresh = copy.copy(module)
    vars(fresh)[what] = dict(content)
    return fresh


def _random(*sizes: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(sizes, generator=generator, device="cpu").to(dtype)


def _agree(stock: Callable[..., Any], fused: Callable[..., Any], *inputs: torch.Tensor) -> bool:
    """Whether two functions give the same values and gradients; no, if the stock one cannot be asked so."""
    try:
        return all(_distance(stock, fused, x) <= _ROUNDING for x in inputs)
    except Exception:  # it wants other arguments, say: then it is something else
        return False


def _distance(stock: Callable[..., Any], fused: Callable[..., Any], x: torch.Tensor) -> float:
    """Largest difference of values and gradients, as a share of the largest."""
    worst = 0.0
    pairs = []
    for function in (stock, fused):
        leaf = x.clone().requires_grad_()
        out = function(leaf)
        (gradient,) = torch.autograd.grad((out * torch.cos(torch.arange(out.numel())).view(out.shape)).sum(), leaf)
        pairs.append((out.detach(), gradient))
    for expected, found in zip(*pairs, strict=True):
        worst = max(worst, float((expected - found).abs().max() / expected.abs().max()))
    return worst
