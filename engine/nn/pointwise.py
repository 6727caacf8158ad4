"""Activations, dropout and elementwise losses, by torch's names.

On torch tensors the activations are torch's own. The losses are written with the operators and methods that a
tilegrad Tensor shares with a torch tensor, so one text serves both, each recorded by its own autograd; bare arrays are
wrapped for the call.
"""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from .. import elementwise, fused, indexing, storage
from ..gradmode import no_grad
from ..rng import default_generator
from ..tensor import Tensor, wrap


def kind_of(x: Any) -> str | None:
    """ "Tensor", "torch", "numpy" or "cupy"; None for what is no array."""
    if isinstance(x, Tensor):
        return "Tensor"
    if x is None or isinstance(x, (bool, int, float, str)):
        return None
    if isinstance(x, np.ndarray):
        return "numpy"
    if storage.is_cupy(x):
        return "cupy"
    torch = sys.modules.get("torch")
    return "torch" if torch is not None and isinstance(x, torch.Tensor) else None


def _wrapped(x: Any) -> Any:
    return wrap(x) if kind_of(x) in ("numpy", "cupy") else x


def _any_kind(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let a function of Tensors take bare arrays too, and name a mixture of kinds."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and not kwargs and isinstance(args[0], Tensor):
            return function(*args)
        kinds = {kind for x in (*args, *kwargs.values()) if (kind := kind_of(x)) is not None}
        if kinds == {"Tensor"}:
            return function(*args, **kwargs)
        if len(kinds) != 1:
            got = " and ".join(sorted(kinds)) or ", ".join(type(x).__name__ for x in args[:1]) or "nothing"
            raise TypeError(
                f"{function.__name__}: expected arrays of one kind (Tensor, torch, numpy or cupy), got {got}"
            )
        if kinds == {"torch"}:
            return function(*args, **kwargs)
        with no_grad():
            return function(*map(_wrapped, args), **{k: _wrapped(x) for k, x in kwargs.items()})._array

    return wrapped


def _torch_functional(input: Any) -> Any:
    """torch.nn.functional if the input is torch's, else None."""
    if isinstance(input, Tensor):
        return None
    return sys.modules["torch"].nn.functional if kind_of(input) == "torch" else None


def _written(input: Tensor, out: Tensor, inplace: bool) -> Tensor:
    return input.copy_(out) if inplace else out


# --- activations ------------------------------------------------------------------------------------------------------


@_any_kind
def relu(input: Any, inplace: bool = False) -> Any:
    """max(x, 0)."""
    torch = _torch_functional(input)
    return torch.relu(input, inplace) if torch else _written(input, fused.activation(input, "relu"), inplace)


@_any_kind
def relu2(input: Any) -> Any:
    """max(x, 0)² (So et al. 2021)."""
    return relu(input) ** 2


@_any_kind
def leaky_relu(input: Any, negative_slope: float = 0.01, inplace: bool = False) -> Any:
    """x above 0, negative_slope·x below."""
    torch = _torch_functional(input)
    if torch:
        return torch.leaky_relu(input, negative_slope, inplace)
    plain = negative_slope == 0.01
    made = fused.activation(input, "leaky_relu") if plain else elementwise.LeakyRelu.apply(input, negative_slope)
    return _written(input, made, inplace)


@_any_kind
def elu(input: Any, alpha: float = 1.0, inplace: bool = False) -> Any:
    """x above 0, alpha·(eˣ − 1) below."""
    torch = _torch_functional(input)
    if torch:
        return torch.elu(input, alpha, inplace)
    made = fused.activation(input, "elu") if alpha == 1.0 else elementwise.Elu.apply(input, alpha)
    return _written(input, made, inplace)


@_any_kind
def selu(input: Any, inplace: bool = False) -> Any:
    """Klambauer et al. 2017."""
    torch = _torch_functional(input)
    return torch.selu(input, inplace) if torch else _written(input, fused.activation(input, "selu"), inplace)


@_any_kind
def gelu(input: Any, approximate: str = "none") -> Any:
    """x·Φ(x) (``approximate="none"``), or its tanh form (``"tanh"``). Hendrycks & Gimpel 2016.

    Raises:
        ValueError: another ``approximate``.
    """
    if approximate not in ("none", "tanh"):
        raise ValueError(f"gelu: expected approximate 'none' or 'tanh', got {approximate!r}")
    torch = _torch_functional(input)
    if torch:
        return torch.gelu(input, approximate=approximate)
    return fused.activation(input, "gelu" if approximate == "none" else "gelu_tanh")


@_any_kind
def silu(input: Any, inplace: bool = False) -> Any:
    """x·sigmoid(x)."""
    torch = _torch_functional(input)
    return torch.silu(input, inplace) if torch else _written(input, fused.activation(input, "silu"), inplace)


@_any_kind
def mish(input: Any, inplace: bool = False) -> Any:
    """x·tanh(softplus(x)) (Misra 2019)."""
    torch = _torch_functional(input)
    return torch.mish(input, inplace) if torch else _written(input, fused.activation(input, "mish"), inplace)


@_any_kind
def softplus(input: Any, beta: float = 1.0, threshold: float = 20.0) -> Any:
    """log(1 + exp(beta·x))/beta, and x itself where beta·x exceeds ``threshold``."""
    torch = _torch_functional(input)
    if torch:
        return torch.softplus(input, beta, threshold)
    plain = beta == 1.0 and threshold == 20.0
    return fused.activation(input, "softplus") if plain else elementwise.Softplus.apply(input, beta, threshold)


@_any_kind
def sigmoid(input: Any) -> Any:
    """1/(1 + e⁻ˣ)."""
    return input.sigmoid() if _torch_functional(input) else fused.activation(input, "sigmoid")


@_any_kind
def logsigmoid(input: Any) -> Any:
    """log sigmoid(x), precise for x far below 0."""
    torch = _torch_functional(input)
    return torch.logsigmoid(input) if torch else elementwise.LogSigmoid.apply(input)


@_any_kind
def tanh(input: Any) -> Any:
    """The hyperbolic tangent."""
    return input.tanh() if _torch_functional(input) else fused.activation(input, "tanh")


@_any_kind
def hardtanh(input: Any, min_val: float = -1.0, max_val: float = 1.0) -> Any:
    """x limited to [min_val, max_val]."""
    return input.clamp(min_val, max_val)


@_any_kind
def dropout(input: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    """In training, zero each element with probability ``p`` and scale the rest by 1/(1 − p).

    Raises:
        ValueError: ``p`` outside [0, 1].
    """
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"dropout: expected p between 0 and 1, got {p}")
    torch = _torch_functional(input)
    if torch:
        return torch.dropout(input, p, training, inplace)
    if not training or p == 0.0:
        return input
    kept = default_generator.uniform(input.shape, 0.0, 1.0, input.device) >= p
    return _written(input, input * wrap(kept) * (1.0 / (1.0 - p) if p < 1.0 else 0.0), inplace)


@_any_kind
def one_hot(tensor: Any, num_classes: int = -1) -> Any:
    """(…) class indices → (…, num_classes) of zeros with a one at each index, int64."""
    torch = _torch_functional(tensor)
    return torch.one_hot(tensor, num_classes) if torch else indexing.one_hot(tensor, num_classes)


@_any_kind
def normalize(input: Any, p: float = 2.0, dim: int = 1, eps: float = 1e-12) -> Any:
    """x divided by its p-norm along ``dim``, which is taken to be at least ``eps``."""
    return input / input.norm(p, dim, True).clamp(min=eps).expand_as(input)


# --- elementwise losses -----------------------------------------------------------------------------------------------


def _reduced(name: str, loss: Any, size_average: bool | None, reduce: bool | None, reduction: str) -> Any:
    if size_average is not None or reduce is not None:
        reduction = "none" if reduce is False else "sum" if size_average is False else "mean"
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    if reduction == "mean":
        return loss.mean()
    raise ValueError(f"{name}: expected reduction 'none', 'mean' or 'sum', got {reduction!r}")


def _same_shape(name: str, input: Any, target: Any) -> None:
    if tuple(input.shape) != tuple(target.shape):
        raise ValueError(
            f"{name}: expected a target of the input's shape {list(input.shape)}, got {list(target.shape)}"
        )


def _broadcast(name: str, input: Any, target: Any) -> None:
    if tuple(input.shape) != tuple(target.shape):
        warnings.warn(
            f"{name}: target of shape {list(target.shape)} is broadcast against input of shape {list(input.shape)}",
            stacklevel=5,
        )


@_any_kind
def mse_loss(
    input: Any, target: Any, size_average: bool | None = None, reduce: bool | None = None, reduction: str = "mean",
    weight: Any = None,
) -> Any:  # fmt: skip
    """(input − target)², each times its ``weight`` (a weighted mean divides by the weights' sum)."""
    _broadcast("mse_loss", input, target)
    loss = (input - target) ** 2
    if weight is not None:
        loss = loss * weight
        if reduction == "mean":
            return loss.sum() / weight.sum()
    return _reduced("mse_loss", loss, size_average, reduce, reduction)


@_any_kind
def l1_loss(
    input: Any, target: Any, size_average: bool | None = None, reduce: bool | None = None, reduction: str = "mean"
) -> Any:
    """|input − target|."""
    _broadcast("l1_loss", input, target)
    return _reduced("l1_loss", (input - target).abs(), size_average, reduce, reduction)


@_any_kind
def smooth_l1_loss(
    input: Any, target: Any, size_average: bool | None = None, reduce: bool | None = None, reduction: str = "mean",
    beta: float = 1.0,
) -> Any:  # fmt: skip
    """d²/(2·beta) for d = |input − target| below ``beta``, d − beta/2 above (Girshick 2015)."""
    if beta < 0:
        raise ValueError(f"smooth_l1_loss: expected beta not to be negative, got {beta}")
    if beta == 0:
        return l1_loss(input, target, size_average, reduce, reduction)
    _broadcast("smooth_l1_loss", input, target)
    d = (input - target).abs()
    loss = (0.5 / beta * d * d).where(d < beta, d - 0.5 * beta)
    return _reduced("smooth_l1_loss", loss, size_average, reduce, reduction)


@_any_kind
def huber_loss(input: Any, target: Any, reduction: str = "mean", delta: float = 1.0, weight: Any = None) -> Any:
    """d²/2 for d = |input − target| below ``delta``, delta·(d − delta/2) above (Huber 1964)."""
    if delta <= 0:
        raise ValueError(f"huber_loss: expected delta to be positive, got {delta}")
    _broadcast("huber_loss", input, target)
    d = (input - target).abs()
    loss = (0.5 * d * d).where(d < delta, delta * (d - 0.5 * delta))
    if weight is not None:
        loss = loss * weight
        if reduction == "mean":
            return loss.sum() / weight.sum()
    return _reduced("huber_loss", loss, None, None, reduction)


@_any_kind
def kl_div(
    input: Any, target: Any, size_average: bool | None = None, reduce: bool | None = None, reduction: str = "mean",
    log_target: bool = False,
) -> Any:  # fmt: skip
    """target·(log target − input), with log-probabilities as input; "batchmean" divides the sum by the first size."""
    if log_target:
        loss = target.exp() * (target - input)
    else:
        positive = target > 0  # 0·log 0 = 0
        loss = (target * ((target * positive + ~positive).log() - input)).where(positive, -target * input)
    if reduction == "batchmean":
        return loss.sum() / max(1, input.shape[0])
    return _reduced("kl_div", loss, size_average, reduce, reduction)


@_any_kind
def binary_cross_entropy(
    input: Any, target: Any, weight: Any = None, size_average: bool | None = None, reduce: bool | None = None,
    reduction: str = "mean",
) -> Any:  # fmt: skip
    """−(y log p + (1 − y) log(1 − p)), the logarithms not below −100 as in torch.

    Raises:
        ValueError: shapes that differ, or probabilities outside [0, 1].
    """
    _same_shape("binary_cross_entropy", input, target)
    torch = _torch_functional(input)
    if torch:
        return torch.binary_cross_entropy(input, target, weight, size_average, reduce, reduction)
    x = input._array
    if isinstance(x, np.ndarray) and not ((x >= 0) & (x <= 1)).all():  # (to look would make a GPU wait)
        raise ValueError(
            "binary_cross_entropy: expected probabilities between 0 and 1; for logits use the _with_logits form"
        )
    loss = elementwise.BinaryCrossEntropy.apply(input, target)
    return _reduced("binary_cross_entropy", loss if weight is None else loss * weight, size_average, reduce, reduction)


@_any_kind
def binary_cross_entropy_with_logits(
    input: Any, target: Any, weight: Any = None, size_average: bool | None = None, reduce: bool | None = None,
    reduction: str = "mean", pos_weight: Any = None,
) -> Any:  # fmt: skip
    """−(w₊·y log σ(x) + (1 − y) log(1 − σ(x))), stable for logits of any size.

    Raises:
        ValueError: shapes that differ.
    """
    _same_shape("binary_cross_entropy_with_logits", input, target)
    log_p = logsigmoid(input)
    scale = 1 if pos_weight is None else (pos_weight - 1) * target + 1
    loss = (1 - target) * input - scale * log_p  # log(1 − σ(x)) = log σ(x) − x
    return _reduced(
        "binary_cross_entropy_with_logits", loss if weight is None else loss * weight, size_average, reduce, reduction
    )


@_any_kind
def hinge_embedding_loss(
    input: Any, target: Any, margin: float = 1.0, size_average: bool | None = None, reduce: bool | None = None,
    reduction: str = "mean",
) -> Any:  # fmt: skip
    """x where the target is 1, max(0, margin − x) where it is −1."""
    apart = (margin - input).clamp(min=0)
    loss = apart.where(target != 1, apart * 0) + input.where(target != -1, input * 0)
    return _reduced("hinge_embedding_loss", loss, size_average, reduce, reduction)


@_any_kind
def margin_ranking_loss(
    input1: Any, input2: Any, target: Any, margin: float = 0.0, size_average: bool | None = None,
    reduce: bool | None = None, reduction: str = "mean",
) -> Any:  # fmt: skip
    """max(0, −y·(x1 − x2) + margin)."""
    loss = (-target * (input1 - input2) + margin).clamp(min=0)
    return _reduced("margin_ranking_loss", loss, size_average, reduce, reduction)


@_any_kind
def soft_margin_loss(
    input: Any, target: Any, size_average: bool | None = None, reduce: bool | None = None, reduction: str = "mean"
) -> Any:
    """log(1 + exp(−y·x)) for targets of 1 and −1."""
    return _reduced("soft_margin_loss", -logsigmoid(target * input), size_average, reduce, reduction)


@_any_kind
def multi_margin_loss(
    input: Any, target: Any, p: int = 1, margin: float = 1.0, weight: Any = None, size_average: bool | None = None,
    reduce: bool | None = None, reduction: str = "mean",
) -> Any:  # fmt: skip
    """The multi-class SVM's loss: Σ over the other classes of max(0, margin − x[t] + x[c])ᵖ, divided by C.

    Args:
        input: (C) or (N, C) scores. target: () or (N) class indices. weight: (C), taken at the target.

    Raises:
        ValueError: ``p`` is not 1 or 2, or shapes that do not fit. IndexError: a target outside [0, C).
    """
    if p not in (1, 2):
        raise ValueError(f"multi_margin_loss: expected p to be 1 or 2, got {p}")
    if input.ndim not in (1, 2) or tuple(target.shape) != tuple(input.shape[:-1]):
        raise ValueError(
            f"multi_margin_loss: expected input (N, C) and target (N), got {list(input.shape)} and {list(target.shape)}"
        )
    classes = input.shape[-1]
    if str(target.device) == "cpu" and target.numel() and not (int(target.min()) >= 0 and int(target.max()) < classes):
        raise IndexError(
            f"multi_margin_loss: expected targets in [0, {classes}), got {int(target.min())} to {int(target.max())}"
        )
    index = target.long().unsqueeze(-1)
    violation = (margin - input.gather(-1, index) + input).relu()  # with slope 0 at the margin, unlike clamp
    if p == 2:
        violation = violation * violation
    if weight is not None:
        violation = violation * weight[index]
    others = one_hot(index.squeeze(-1), classes) == 0
    loss = (violation * others).sum(-1) / classes
    return _reduced("multi_margin_loss", loss, size_average, reduce, reduction)
