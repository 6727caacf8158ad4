"""The fused operations on torch tensors, as torch.library operators (``torch.ops.tilegrad.*``) over backends.py.

Each has a schema, a fake implementation and a derivative, so they work under torch.compile and with torch's own checks
(``torch.library.opcheck``). The functions at the end are called by nn/functional.py, under the names of fused.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import activations, backends
from ..activations import ACTIVATIONS
from ..backends import LossOptions

__all__ = ["autocast", "cross_entropy", "linear", "linear_cross_entropy", "nll_loss", "softmax"]


def _or_empty(x: Tensor | None, like: Tensor) -> Tensor:
    """An operator returns tensors only: an empty one stands for None."""
    return like.new_empty(0) if x is None else x


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _once(name: str, grads: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    """Gradients that have no derivative: under ``create_graph`` they become an error when differentiated."""
    if not torch.is_grad_enabled():
        return grads

    def delayed(g: Tensor | None) -> Tensor | None:
        error = torch._C._functions.DelayedError(f"tilegrad.{name} cannot be differentiated twice", 1)
        return None if g is None else error(g.detach().requires_grad_())

    return tuple(map(delayed, grads))


# --- operators --------------------------------------------------------------------------------------------------------


def _operator(name: str) -> Callable[[Callable[..., Any]], Any]:
    """``torch.ops.tilegrad.<name>``, which remembers the function that it was made of."""

    def made(function: Callable[..., Any]) -> Any:
        operator: Any = torch.library.custom_op(f"tilegrad::{name}", mutates_args=())(function)
        operator.function, operator.recorded = function, None
        return operator

    return made


def _differentiable(operator: Any, backward: Callable[..., Any], setup: Callable[..., None]) -> None:
    """Give an operator its derivative: in torch.library's autograd, and in a Function for calls that are plain."""
    operator.register_autograd(backward, setup_context=setup)

    def forward(ctx: Any, *args: Any) -> Any:
        output = operator.function(*args)
        setup(ctx, args, output)
        return output

    names = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    operator.recorded = type(operator.function.__name__, (torch.autograd.Function,), names)


def _call(operator: Any, *args: Any) -> Any:
    """An operator's result. torch.library's way to it takes tens of microseconds; a plain call, which nothing traces,
    transforms or looks at, goes straight to the function."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return operator(*args)
    tensors = [a for a in args if isinstance(a, Tensor)]
    if not all(type(t) in (Tensor, torch.nn.Parameter) and t.device.type in ("cpu", "cuda") for t in tensors):
        return operator(*args)
    if torch._C._len_torch_dispatch_stack() or torch._C._functorch.peek_interpreter_stack() is not None:
        return operator(*args)
    if operator.recorded is not None and any(_recorded(*tensors)):
        return operator.recorded.apply(*args)
    return operator.function(*args)


def _recorded(*tensors: Tensor | None) -> list[bool]:
    enabled = torch.is_grad_enabled()
    return [enabled and t is not None and t.requires_grad for t in tensors]


# --- linear -----------------------------------------------------------------------------------------------------------


@_operator("linear")
def _linear(input: Tensor, weight: Tensor, bias: Tensor | None, activation: str, save: bool) -> tuple[Tensor, Tensor]:
    out, saved = backends.linear(input, weight, bias, activation or None, save)
    return out, _or_empty(None if saved is out else saved, out)


@_linear.register_fake
def _(input: Tensor, weight: Tensor, bias: Tensor | None, activation: str, save: bool) -> tuple[Tensor, Tensor]:
    act = ACTIVATIONS.get(activation)
    rows = weight.shape[0]
    out = input.new_empty((*input.shape[:-1], rows // 2 if act is not None and act.gated else rows))
    if save and act is not None and not act.by_sign:
        return out, input.new_empty((*input.shape[:-1], rows))
    return out, input.new_empty(0)


@_operator("linear_backward")
def _linear_backward(
    grad: Tensor, input: Tensor, weight: Tensor, saved: Tensor | None, activation: str, needs: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    made = backends.linear_backward(grad, input, weight, saved, activation or None, (needs[0], needs[1], needs[2]))
    return _or_empty(made[0], grad), _or_empty(made[1], grad), _or_empty(made[2], grad)


@_linear_backward.register_fake
def _(
    grad: Tensor, input: Tensor, weight: Tensor, saved: Tensor | None, activation: str, needs: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    shapes = input.shape, weight.shape, weight.shape[:1]
    made = [grad.new_empty(s if n else 0) for s, n in zip(shapes, needs, strict=True)]
    return made[0], made[1], made[2]


def _linear_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    input, weight, bias, ctx.activation, _ = inputs
    act = ACTIVATIONS.get(ctx.activation)
    saved = None if act is None else output[0] if act.by_sign else output[1]
    ctx.save_for_backward(input, weight, bias, saved)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # or there would be zeros for that, in every backward


def _linear_grad(ctx: Any, grad: Tensor, _: Any) -> tuple[Any, ...]:
    input, weight, bias, saved = ctx.saved_tensors
    if torch.is_grad_enabled():  # second derivatives: the same in torch's own operations
        return (*_linear_grad_recorded(ctx.activation, grad, input, weight, bias), None, None)
    needs = [ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.needs_input_grad[2]]
    made = _call(_linear_backward, grad, input, weight, saved, ctx.activation, needs)
    return (*(m if n else None for m, n in zip(made, needs, strict=True)), None, None)


def _linear_grad_recorded(
    activation: str, grad: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    dz = grad
    if activation:
        z = torch.nn.functional.linear(input, weight, bias)
        dz = activations.backward(_Namespace, torch.cat, activation, z, grad)
    rows = dz.reshape(-1, weight.shape[0])
    return dz @ weight, rows.mT @ input.reshape(-1, weight.shape[1]), None if bias is None else rows.sum(0)


class _Namespace:
    """torch under the names that activations.py uses."""

    abs, exp, expm1, log1p, tanh, where = torch.abs, torch.exp, torch.expm1, torch.log1p, torch.tanh, torch.where
    ones_like, erfc = torch.ones_like, torch.special.erfc
    maximum = staticmethod(lambda x, bound: torch.clamp(x, min=bound))
    minimum = staticmethod(lambda x, bound: torch.clamp(x, max=bound))


_differentiable(_linear, _linear_grad, _linear_setup)


# --- softmax ----------------------------------------------------------------------------------------------------------


@_operator("softmax")
def _softmax(input: Tensor, dim: int, log: bool, dtype: torch.dtype | None) -> Tensor:
    return backends.softmax(input, dim, log, dtype)


@_softmax.register_fake
def _(input: Tensor, dim: int, log: bool, dtype: torch.dtype | None) -> Tensor:
    return input.new_empty(input.shape, dtype=dtype or input.dtype)


@_operator("softmax_backward")
def _softmax_backward(grad: Tensor, output: Tensor, dim: int, log: bool, dtype: torch.dtype) -> Tensor:
    return backends.softmax_backward(grad, output, dim, log, dtype)


@_softmax_backward.register_fake
def _(grad: Tensor, output: Tensor, dim: int, log: bool, dtype: torch.dtype) -> Tensor:
    return output.new_empty(output.shape, dtype=dtype)


def _softmax_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.was, ctx.dim, ctx.log = inputs[0].dtype, inputs[1], inputs[2]
    ctx.save_for_backward(output)


def _softmax_grad(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    (y,) = ctx.saved_tensors
    if not torch.is_grad_enabled():
        return _call(_softmax_backward, grad, y, ctx.dim, ctx.log, ctx.was), None, None, None
    if ctx.log:
        return (grad - y.exp() * grad.sum(ctx.dim, keepdim=True)).to(ctx.was), None, None, None
    return (y * (grad - (grad * y).sum(ctx.dim, keepdim=True))).to(ctx.was), None, None, None


_differentiable(_softmax, _softmax_grad, _softmax_setup)


# --- the losses -------------------------------------------------------------------------------------------------------
# Schemas have no tuples: the options travel one by one, in the order of LossOptions.


def _rows(logits: Tensor) -> tuple[int, ...]:
    return (*logits.shape[:1], *logits.shape[2:]) if logits.ndim > 1 else ()


@_operator("nll_loss")
def _nll_loss(input: Tensor, target: Tensor, weight: Tensor | None, reduction: str, ignore_index: int) -> Tensor:
    return backends.nll_loss(input, target, weight, LossOptions(reduction, ignore_index))


@_nll_loss.register_fake
def _(input: Tensor, target: Tensor, weight: Tensor | None, reduction: str, ignore_index: int) -> Tensor:
    return input.new_empty(_rows(input) if reduction == "none" else ())


@_operator("nll_loss_backward")
def _nll_loss_backward(
    grad: Tensor, input: Tensor, target: Tensor, weight: Tensor | None, reduction: str, ignore_index: int
) -> Tensor:
    return backends.nll_loss_backward(grad, input, target, weight, LossOptions(reduction, ignore_index))


@_nll_loss_backward.register_fake
def _(grad: Tensor, input: Tensor, target: Tensor, weight: Tensor | None, reduction: str, ignore_index: int) -> Tensor:
    return torch.empty_like(input, memory_format=torch.contiguous_format)


def _nll_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.o = inputs[3:]


def _nll_grad(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    input, target, weight = ctx.saved_tensors
    if torch.is_grad_enabled():  # linear in the input: a constant times the upstream gradient
        slope = _call(_nll_loss_backward, torch.ones_like(grad), input.detach(), target, weight, *ctx.o)
        per_row = ctx.o[0] == "none"
        return (grad.unsqueeze(1 if input.ndim > 1 else 0) if per_row else grad) * slope, None, None, None, None
    return _call(_nll_loss_backward, grad, input, target, weight, *ctx.o), None, None, None, None


_differentiable(_nll_loss, _nll_grad, _nll_setup)


@_operator("cross_entropy")
def _cross_entropy(
    input: Tensor, target: Tensor, weight: Tensor | None, reduction: str, ignore_index: int, label_smoothing: float,
    z_loss: float, softcap: float, want_grad: bool, want_stats: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    o = LossOptions(reduction, ignore_index, label_smoothing, z_loss, softcap)
    made = backends.cross_entropy(input, target, weight, o, want_grad, want_stats)
    argmax = target.new_empty(0, dtype=torch.int64) if made.argmax is None else made.argmax
    return made.loss, made.lse, argmax, _or_empty(made.grads[0], input)


@_cross_entropy.register_fake
def _(
    input: Tensor, target: Tensor, weight: Tensor | None, reduction: str, ignore_index: int, label_smoothing: float,
    z_loss: float, softcap: float, want_grad: bool, want_stats: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    rows = _rows(input)
    return (
        input.new_empty(rows if reduction == "none" else ()),
        input.new_empty((2, *rows), dtype=_wide(input)),
        target.new_empty(rows if want_stats else 0, dtype=torch.int64),
        input.new_empty(input.shape if want_grad else 0),
    )


@_operator("cross_entropy_backward")
def _cross_entropy_backward(
    grad: Tensor, input: Tensor, target: Tensor, weight: Tensor | None, lse: Tensor, reduction: str, ignore_index: int,
    label_smoothing: float, z_loss: float, softcap: float, needs: list[bool],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    o = LossOptions(reduction, ignore_index, label_smoothing, z_loss, softcap)
    made = backends.cross_entropy_backward(grad, input, target, weight, lse, o, (needs[0], needs[1]))
    return _or_empty(made[0], grad), _or_empty(made[1], grad)


@_cross_entropy_backward.register_fake
def _(
    grad: Tensor, input: Tensor, target: Tensor, weight: Tensor | None, lse: Tensor, reduction: str, ignore_index: int,
    label_smoothing: float, z_loss: float, softcap: float, needs: list[bool],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return input.new_empty(input.shape if needs[0] else 0), input.new_empty(target.shape if needs[1] else 0)


def _cross_entropy_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    input, target, weight, *options, want_grad, _ = inputs
    _, lse, argmax, made = output
    ctx.o, ctx.made = options, made if want_grad else None
    ctx.save_for_backward(input, target, weight, lse)
    ctx.mark_non_differentiable(lse, argmax, made)
    ctx.set_materialize_grads(False)


def _handed_over(grad: Tensor, upstream: Tensor) -> Tensor:
    """A gradient made in the forward pass, for the upstream gradient that came. Compiled graphs may run more than once:
    there it is left as it is."""
    return grad * upstream if torch.compiler.is_compiling() else backends.scaled(grad, upstream)


def _cross_entropy_grad(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
    arrays = ctx.saved_tensors
    of_input = of_target = None
    with torch.no_grad():
        needs = [ctx.needs_input_grad[0] and ctx.made is None, ctx.needs_input_grad[1]]
        if any(needs):
            by_input, by_target = _call(_cross_entropy_backward, grad, *arrays, *ctx.o, needs)
            of_input, of_target = by_input if needs[0] else None, by_target if needs[1] else None
        if ctx.made is not None:
            of_input = _handed_over(ctx.made, grad)
            if not torch.compiler.is_compiling():
                ctx.made = None  # a second backward makes it again
    return (*_once("cross_entropy", (of_input, of_target)), *[None] * 8)


_differentiable(_cross_entropy, _cross_entropy_grad, _cross_entropy_setup)


@_operator("linear_cross_entropy")
def _linear_cross_entropy(
    input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, target: Tensor, weight: Tensor | None,
    reduction: str, ignore_index: int, label_smoothing: float, z_loss: float, softcap: float, needs: list[bool],
    want_stats: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    o = LossOptions(reduction, ignore_index, label_smoothing, z_loss, softcap)
    wanted = (needs[0], needs[1], needs[2], needs[3])
    made = backends.linear_cross_entropy(input, linear_weight, linear_bias, target, weight, o, wanted, want_stats)
    argmax = target.new_empty(0, dtype=torch.int64) if made.argmax is None else made.argmax
    a, b, c, d = (_or_empty(g, input) for g in made.grads)
    return made.loss, _or_empty(made.lse, input.new_empty(0, dtype=_wide(input))), argmax, a, b, c, d


@_linear_cross_entropy.register_fake
def _(
    input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, target: Tensor, weight: Tensor | None,
    reduction: str, ignore_index: int, label_smoothing: float, z_loss: float, softcap: float, needs: list[bool],
    want_stats: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    rows = (input.shape[0], linear_weight.shape[1])
    a, b, c, d = _gradient_shapes(input, linear_weight, target, needs)
    return (
        input.new_empty(rows if reduction == "none" else ()),
        input.new_empty((2, *rows) if want_stats else 0, dtype=_wide(input)),
        target.new_empty(rows if want_stats else 0, dtype=torch.int64),
        a, b, c, d,
    )  # fmt: skip


def _gradient_shapes(input: Tensor, linear_weight: Tensor, target: Tensor, needs: list[bool]) -> list[Tensor]:
    shapes = input.shape, linear_weight.shape, linear_weight.shape[:2], target.shape
    return [input.new_empty(s if n else 0) for s, n in zip(shapes, needs, strict=True)]


@_operator("linear_cross_entropy_backward")
def _linear_cross_entropy_backward(
    grad: Tensor, input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, target: Tensor,
    weight: Tensor | None, reduction: str, ignore_index: int, label_smoothing: float, z_loss: float, softcap: float,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    o = LossOptions(reduction, ignore_index, label_smoothing, z_loss, softcap)
    wanted = (needs[0], needs[1], needs[2], needs[3])
    made = backends.linear_cross_entropy_backward(grad, input, linear_weight, linear_bias, target, weight, o, wanted)
    a, b, c, d = (_or_empty(g, input) for g in made)
    return a, b, c, d


@_linear_cross_entropy_backward.register_fake
def _(
    grad: Tensor, input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, target: Tensor,
    weight: Tensor | None, reduction: str, ignore_index: int, label_smoothing: float, z_loss: float, softcap: float,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    a, b, c, d = _gradient_shapes(input, linear_weight, target, needs)
    return a, b, c, d


def _linear_cross_entropy_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *arrays, r, i, s, z, c, needs, _ = inputs
    ctx.o, ctx.needs = (r, i, s, z, c), needs
    ctx.save_for_backward(*arrays)
    ctx.made = None if r == "none" else output[3:]
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _linear_cross_entropy_grad(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
    needs = [bool(ctx.needs_input_grad[i]) for i in range(4)]
    with torch.no_grad():
        arrays = ctx.saved_tensors  # (asked for in any case: this is where torch says that the graph was freed)
        if ctx.made is None:
            made = _call(_linear_cross_entropy_backward, grad, *arrays, *ctx.o, needs)
        else:
            made = tuple(_handed_over(g, grad) if n else g for g, n in zip(ctx.made, ctx.needs, strict=True))
            if not torch.compiler.is_compiling():
                ctx.made = None  # the gradients are handed over; a second backward makes them again
    grads = tuple(m if n else None for m, n in zip(made, needs, strict=True))
    return (*_once("linear_cross_entropy", grads), *[None] * 8)


_differentiable(_linear_cross_entropy, _linear_cross_entropy_grad, _linear_cross_entropy_setup)


# --- autocast ---------------------------------------------------------------------------------------------------------


def autocast(lower: bool, *tensors: Tensor | None) -> tuple[Any, ...]:
    """The tensors in the dtype that torch.autocast, where it is on, runs an operation in: its own lower one for matrix
    products, float32 for losses. As in torch, float64 and integers are left alone."""
    device = next(t for t in tensors if t is not None).device.type
    if device == "meta" or not torch.is_autocast_enabled(device):  # (which knows no meta)
        return tensors
    dtype = torch.get_autocast_dtype(device) if lower else torch.float32
    eligible = (torch.float32, torch.float16, torch.bfloat16)
    return tuple(t.to(dtype) if t is not None and t.dtype in eligible else t for t in tensors)


# --- as nn/functional.py calls them -----------------------------------------------------------------------------------


def linear(input: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None) -> Tensor:
    """(…, K), (M, K), (M) → (…, M)."""
    return _call(_linear, input, weight, bias, activation or "", any(_recorded(input, weight, bias)))[0]


def softmax(input: Tensor, dim: int, log: bool, dtype: torch.dtype | None) -> Tensor:
    """softmax or log-softmax along ``dim``, computed in and returned as ``dtype`` (None: the input's)."""
    return _call(_softmax, input, dim, log, dtype)


def nll_loss(input: Tensor, target: Tensor, weight: Tensor | None, o: LossOptions) -> Tensor:
    """(N, C, d…) log-probabilities and (N, d…) indices → the loss."""
    return _call(_nll_loss, input, target, weight, o.reduction, o.ignore_index)


def cross_entropy(input: Tensor, target: Tensor, weight: Tensor | None, o: LossOptions, want_stats: bool) -> Any:
    """(N, C, d…) logits → the loss, or (loss, lse, argmax)."""
    at_once = o.reduction != "none" and _recorded(input)[0]
    loss, lse, argmax, _ = _call(_cross_entropy, input, target, weight, *o, at_once, want_stats)
    return (loss, backends.logsumexp_of(lse), argmax) if want_stats else loss


def linear_cross_entropy(
    input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, target: Tensor, weight: Tensor | None,
    o: LossOptions, want_stats: bool,
) -> Any:  # fmt: skip
    """(N, K) input and (C, D, K) weight → the loss, or (loss, lse, argmax)."""
    needs = _recorded(input, linear_weight, linear_bias, target) if o.reduction != "none" else [False] * 4
    made = _call(_linear_cross_entropy, input, linear_weight, linear_bias, target, weight, *o, needs, want_stats)
    loss = autocast(False, made[0])[0]  # under autocast a loss is float32
    return (loss, backends.logsumexp_of(made[1]), made[2]) if want_stats else loss
