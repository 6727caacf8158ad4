"""The fused operations as Functions of our autograd, over backends.py."""

from __future__ import annotations

from typing import Any

from . import activations, backends, elementwise, functions, reductions, shaping
from .backends import LossOptions
from .graph import ArrayFunction, Variable, compiled, once_differentiable
from .storage import Array, namespace, numpy_dtype


class Activation(ArrayFunction):
    """act(x) of each element by a kernel of its own."""

    warns = False  # the kernels do not, and make their outputs in the dtype that they are to have

    @staticmethod
    def forward(ctx: Any, x: Array, name: str) -> Array:
        y = backends.activation(x, name)
        ctx.name_of = name
        ctx.save(y if activations.ACTIVATIONS[name].by_sign else x)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        (saved,) = ctx.saved
        if isinstance(grad, Variable):
            return activations.backward(functions, shaping.cat, ctx.name_of, saved, grad), None
        return backends.activation_backward(grad, saved, ctx.name_of), None


class Linear(ArrayFunction):
    warns = False

    @staticmethod
    def forward(ctx: Any, x: Array, weight: Array, bias: Array | None, activation: str | None) -> Array:
        out, pre = backends.linear(x, weight, bias, activation, save=bool(ctx.needs_input_grad))
        ctx.activation = activation
        ctx.save(x, weight, bias, out if pre is out else None)
        ctx.keep(pre if pre is not out else None)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        if isinstance(grad, Variable):
            return _linear_backward_recorded(ctx, grad)
        x, weight, _, out = ctx.saved
        saved = out if out is not None else ctx.kept[0]
        return (*backends.linear_backward(grad, x, weight, saved, ctx.activation, ctx.needs_input_grad[:3]), None)


def _linear_backward_recorded(ctx: Any, grad: Any) -> Any:
    """The same in recorded operations, for second derivatives: the pre-activation is made again from the inputs."""
    x, weight, bias, _ = ctx.saved
    dz = grad
    if ctx.activation is not None:
        z = reductions.matmul(x, weight.T) + (0 if bias is None else bias)
        dz = activations.backward(functions, shaping.cat, ctx.activation, z, grad)
    rows = dz.reshape(-1, weight.shape[0])
    of_bias = None if bias is None else rows.sum(0)
    return reductions.matmul(dz, weight), reductions.matmul(rows.T, x.reshape(-1, weight.shape[1])), of_bias, None


class Softmax(ArrayFunction):
    warns = False
    log = False
    keeps_half = False  # a wider output was asked for by dtype

    @staticmethod
    def forward(ctx: Any, x: Array, dim: int, dtype: Any) -> Array:
        y = backends.softmax(x, dim, type(ctx).log, dtype)
        ctx.dim, ctx.was = dim, x.dtype
        ctx.save(y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        (y,) = ctx.saved
        if not isinstance(grad, Variable):
            return backends.softmax_backward(grad, y, ctx.dim, type(ctx).log, ctx.was), None, None
        if type(ctx).log:
            return grad - functions.exp(y) * reductions.sum(grad, ctx.dim, True), None, None
        return y * (grad - reductions.sum(grad * y, ctx.dim, True)), None, None


class LogSoftmax(Softmax):
    log = True


class NllLoss(ArrayFunction):
    warns = False

    @staticmethod
    def forward(ctx: Any, logp: Array, target: Array, weight: Array | None, o: LossOptions) -> Array:
        ctx.save(logp, target, weight)
        ctx.o = o
        return backends.nll_loss(logp, target, weight, o)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        logp, target, weight = ctx.saved
        if not isinstance(grad, Variable):
            return backends.nll_loss_backward(grad, logp, target, weight, ctx.o), None, None, None
        # Linear in logp: the derivative is a constant, times the upstream gradient.
        x, indices, w = (t._array if isinstance(t, Variable) else t for t in (logp, target, weight))
        slope = grad._make(backends.nll_loss_backward(namespace(x).ones(grad.shape, x.dtype), x, indices, w, ctx.o))
        spread = shaping.unsqueeze(grad, 1 if x.ndim > 1 else 0) if ctx.o.reduction == "none" else grad
        return spread * slope, None, None, None


def _with_stats(made: backends.LossResult, want_stats: bool) -> Any:
    return (made.loss, backends.logsumexp_of(made.lse), made.argmax) if want_stats else made.loss


class CrossEntropy(ArrayFunction):
    warns = False
    hands_over = True
    keeps_half = False  # stats stay wide; the loss comes rounded

    @staticmethod
    def forward(ctx: Any, logits: Array, target: Array, weight: Array | None, o: LossOptions, want_stats: bool) -> Any:
        need_logits, need_target, *_ = ctx.needs_input_grad or (False, False)
        at_once = need_logits and o.reduction != "none"
        made = backends.cross_entropy(logits, target, weight, o, at_once, want_stats)
        ctx.o = o
        if need_logits or need_target:
            # Class probabilities that need a gradient, per-row losses and a second backward go over the logits again.
            ctx.save(logits, target, weight)
            ctx.keep(made.grads[0], made.lse)
        return _with_stats(made, want_stats)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Array, *of_stats: Any) -> Any:
        logits, target, weight = ctx.saved
        made, lse = ctx.kept
        needs = ctx.needs_input_grad[0] and made is None, ctx.needs_input_grad[1]
        of_logits = of_target = None
        if any(needs):
            of_logits, of_target = backends.cross_entropy_backward(grad, logits, target, weight, lse, ctx.o, needs)
        if made is not None:
            of_logits = backends.scaled(made, grad)
            ctx.keep(None, lse)  # it is handed over
        return of_logits, of_target, None, None, None


class LinearCrossEntropy(ArrayFunction):
    warns = False
    keeps_half = False

    @staticmethod
    def forward(
        ctx: Any, x: Array, linear_weight: Array, linear_bias: Array | None, target: Array, weight: Array | None,
        o: LossOptions, want_stats: bool,
    ) -> Any:  # fmt: skip
        needs = (ctx.needs_input_grad or (False,) * 4)[:4]
        at_once = o.reduction != "none"
        made = backends.linear_cross_entropy(
            x, linear_weight, linear_bias, target, weight, o, needs if at_once else (False,) * 4, want_stats
        )
        ctx.o = o
        ctx.save(x, linear_weight, linear_bias, target, weight)
        ctx.keep(made.grads if at_once else None)
        return _with_stats(made, want_stats)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Array, *of_stats: Any) -> Any:
        x, linear_weight, linear_bias, target, weight = ctx.saved
        (made,) = ctx.kept
        if made is not None:
            ctx.keep(None)  # they are handed over: a second backward makes them again
            return (*(backends.scaled(g, grad) for g in made), None, None, None)
        made = backends.linear_cross_entropy_backward(
            grad, x, linear_weight, linear_bias, target, weight, ctx.o, ctx.needs_input_grad[:4]
        )
        return (*made, None, None, None)


# --- plain calls, before anything is checked --------------------------------------------------------------------------


def plain_softmax(input: Any, dim: Any, log: bool) -> Any:
    """``softmax`` of a Tensor on the CPU by compiled code, or None: then nothing was done, and all is to be checked."""
    if compiled is None or not backends.takes_plain_calls():
        return None
    return compiled.plain_softmax(LogSoftmax if log else Softmax, input, dim)


def plain_cross_entropy(input: Any, target: Any, o: LossOptions) -> Any:
    """``cross_entropy`` in the same way; ``o`` asks for a mean or a sum, and nothing else."""
    if compiled is None or not backends.takes_plain_calls():
        return None
    return compiled.plain_cross_entropy(CrossEntropy, input, target, o, o.reduction == "mean")


# --- as nn/functional.py calls them, the same names as in torch/ ------------------------------------------------------


_BY_ARRAY_LIBRARY = {
    "relu": elementwise.Relu, "leaky_relu": elementwise.LeakyRelu, "elu": elementwise.Elu, "selu": elementwise.Selu,
    "gelu": elementwise.Gelu, "gelu_tanh": elementwise.GeluTanh, "silu": elementwise.Silu, "mish": elementwise.Mish,
    "sigmoid": elementwise.Sigmoid, "tanh": elementwise.Tanh, "softplus": elementwise.Softplus,
}  # fmt: skip


def activation(input: Any, name: str) -> Any:
    """act(x) of each element, with the activation's default parameters."""
    if backends.has_kernels_for(input._array):
        return Activation.apply(input, name)
    return _BY_ARRAY_LIBRARY[name].apply(input)


def linear(input: Any, weight: Any, bias: Any, activation: str | None) -> Any:
    """(…, K), (M, K), (M) → (…, M)."""
    return Linear.apply(input, weight, bias, activation)


def softmax(input: Any, dim: int, log: bool, dtype: Any) -> Any:
    """softmax or log-softmax along ``dim``, computed in and returned as ``dtype`` (None: the input's)."""
    return (LogSoftmax if log else Softmax).apply(input, dim, None if dtype is None else numpy_dtype(dtype))


def nll_loss(input: Any, target: Any, weight: Any, o: LossOptions) -> Any:
    """(N, C, d…) log-probabilities and (N, d…) indices → the loss."""
    return NllLoss.apply(input, target, weight, o)


def cross_entropy(input: Any, target: Any, weight: Any, o: LossOptions, want_stats: bool) -> Any:
    """(N, C, d…) logits → the loss, or (loss, lse, argmax)."""
    return CrossEntropy.apply(input, target, weight, o, want_stats)


def linear_cross_entropy(
    input: Any, linear_weight: Any, linear_bias: Any, target: Any, weight: Any, o: LossOptions, want_stats: bool
) -> Any:
    """(N, K) input and (C, D, K) weight → the loss, or (loss, lse, argmax)."""
    return LinearCrossEntropy.apply(input, linear_weight, linear_bias, target, weight, o, want_stats)
