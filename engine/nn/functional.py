"""torch.nn.functional's names on tilegrad Tensors, torch tensors, NumPy arrays and CuPy arrays.

Each function takes the kind it is handed and returns that kind. Here are the fused operations, with all of their
checks: what is wrong is said before anything runs. Activations and elementwise losses are in pointwise.py.
"""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple

import numpy as np

from .. import fused, shaping, storage
from ..activations import ACTIVATIONS
from ..backends import LossOptions
from ..gradmode import no_grad
from ..tensor import Tensor, wrap

from .pointwise import (  # isort: skip
    binary_cross_entropy, binary_cross_entropy_with_logits, dropout, elu, gelu, hardtanh, hinge_embedding_loss,
    huber_loss, kind_of, kl_div, l1_loss, leaky_relu, logsigmoid, margin_ranking_loss, mish, mse_loss,
    multi_margin_loss, normalize, one_hot, relu, relu2, selu, sigmoid, silu, smooth_l1_loss, soft_margin_loss,
    softplus, tanh,
)  # fmt: skip

__all__ = [
    "LossStats", "binary_cross_entropy", "binary_cross_entropy_with_logits", "cross_entropy", "dropout", "elu",
    "gelu", "hardtanh", "hinge_embedding_loss", "huber_loss", "kl_div", "l1_loss", "leaky_relu", "linear",
    "linear_cross_entropy", "log_softmax", "logsigmoid", "margin_ranking_loss", "mish", "mse_loss",
    "multi_margin_loss", "nll_loss", "normalize", "one_hot", "relu", "relu2", "selu", "sigmoid", "silu",
    "smooth_l1_loss", "soft_margin_loss", "softmax", "softplus", "tanh",
]  # fmt: skip


class LossStats(NamedTuple):
    """What ``return_stats=True`` returns beside the loss, per row (ignored rows included), not differentiable."""

    lse: Any  # the logsumexp of the (soft-capped) logits, float32 (float64 for float64)
    argmax: Any  # the index of the largest logit, int64


# --- kinds ------------------------------------------------------------------------------------------------------------


def _are_plain(*tensors: Any) -> bool:
    """Whether all but None are Tensors on the CPU of one floating dtype: then of kinds, devices and dtypes there is
    nothing more to check. (A training step asks this often.)"""
    dtype = None
    for t in tensors:
        if t is None:
            continue
        if not isinstance(t, Tensor) or type(t._array) is not np.ndarray:
            return False
        if dtype is None:
            dtype = t._array.dtype
        elif t._array.dtype != dtype:
            return False
    return dtype is not None and storage.is_floating(dtype)


def _kind(name: str, **arrays: Any) -> Any:
    """The one kind, on one device, of all the arguments that are not None."""
    given = {k: v for k, v in arrays.items() if v is not None}
    first = next(iter(given))
    kinds = {k: "numpy" if isinstance(v, np.generic) else kind_of(v) for k, v in given.items()}
    for k, kind in kinds.items():
        if kind is None:
            expected = "a tilegrad.Tensor, torch.Tensor, numpy.ndarray or cupy.ndarray"
            raise TypeError(f"{name}: expected {expected}, got {type(given[k]).__name__}")
        if kind != kinds[first]:
            raise TypeError(f"{name}: {first} is a {kinds[first]} array and {k} a {kind} array; expected one kind")
    if kinds[first] != "numpy":
        for k, v in given.items():
            if str(v.device) != str(given[first].device):
                raise ValueError(
                    f"{name}: {first} is on {given[first].device} and {k} on {v.device}; expected one device"
                )
    return kinds[first]


def _bare(x: Any) -> Any:
    """What is asked for shapes and dtypes: the array itself, where a Tensor's properties would make objects."""
    return x._array if isinstance(x, Tensor) else x


def _same_dtype(name: str, **arrays: Any) -> None:
    first, expected = "", None
    for k, v in arrays.items():
        if v is None:
            continue
        found = _bare(v).dtype
        if expected is None:
            first, expected = k, found
        if not _is_floating(_bare(v)):
            raise TypeError(f"{name}: expected {k} of a floating dtype, got {v.dtype}")
        if found != expected:
            raise TypeError(f"{name}: {first} is {arrays[first].dtype} and {k} is {v.dtype}; expected one dtype")


def _is_floating(x: Any) -> bool:
    dtype = x.dtype
    return storage.is_floating(dtype) if isinstance(dtype, np.dtype) else dtype.is_floating_point


_INTEGER_NAMES = ("uint8", "int8", "int16", "int32", "int64")
_INTEGERS = frozenset(map(np.dtype, _INTEGER_NAMES))


def _is_integer(x: Any) -> bool:
    dtype = x.dtype  # (the name of a NumPy dtype is long in the making)
    return dtype in _INTEGERS if isinstance(dtype, np.dtype) else str(dtype).rpartition(".")[2] in _INTEGER_NAMES


class _OnArrays:
    """The fused operations for bare arrays: the Tensor's, forward only."""

    def __getattr__(self, name: str) -> Any:
        def run(*args: Any) -> Any:
            with no_grad():
                made = getattr(fused, name)(*map(_wrapped, args))
            return tuple(m._array for m in made) if isinstance(made, tuple) else made._array

        return run


def _wrapped(x: Any) -> Any:
    if isinstance(x, (np.ndarray, np.generic)):
        return wrap(np.asarray(x))
    return wrap(x) if storage.is_cupy(x) else x


def _ops(kind: str) -> Any:
    """The fused operations for one kind, each recorded by its own autograd."""
    if kind == "Tensor":
        return fused
    if kind == "torch":
        from .. import torch

        return torch
    return _OnArrays()


def _autocast(kind: str, lower: bool, *arrays: Any) -> tuple[Any, ...]:
    """torch tensors as torch.autocast wants them for a matrix product (``lower``) or a loss; others are themselves."""
    return _ops(kind).autocast(lower, *arrays) if kind == "torch" else arrays


def _shaped(kind: str, x: Any, *shape: int) -> Any:
    """A reshape that every kind has."""
    return shaping.reshape(x, *shape) if kind == "Tensor" else x.reshape(shape)


# --- linear -----------------------------------------------------------------------------------------------------------


def linear(input: Any, weight: Any, bias: Any = None, *, activation: str | None = None) -> Any:
    """y = activation(x Wᵀ + b), in one kernel.

    Args:
        input: (…, K).
        weight: (M, K), or (K) for a single output that is dropped from the shape. For the gated activations (2M, K).
        bias: (M), () for a 1-d weight, or (2M); or None.
        activation: None or one of relu, leaky_relu, elu, selu, gelu (erf), gelu_tanh, silu, mish, sigmoid, tanh,
            softplus, relu2 (with torch's default parameters), and the gated swiglu = silu(x Wgᵀ + bg)·(x Wuᵀ + bu) and
            geglu, whose weight and bias hold gate above up.

    Returns:
        (…, M), of the kind and dtype of ``input``.

    Raises:
        ValueError: shapes that do not fit, an unknown activation, different devices. TypeError: mixed kinds or dtypes.
    """
    if _are_plain(input, weight, bias):
        kind, x, w = "Tensor", input._array.shape, weight._array.shape
        b = None if bias is None else bias._array.shape
    else:
        kind = _kind("linear", input=input, weight=weight, bias=bias)
        input, weight, bias = _autocast(kind, True, input, weight, bias)
        _same_dtype("linear", input=input, weight=weight, bias=bias)
        x, w, b = (None if a is None else tuple(a.shape) for a in (input, weight, bias))
    if activation is not None and activation not in ACTIVATIONS:
        raise ValueError(f"linear: expected activation None or one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    if len(w) not in (1, 2) or not x or x[-1] != w[-1]:
        raise ValueError(f"linear: expected input (…, K) and weight (M, K), got shapes {list(x)} and {list(w)}")
    single = len(w) == 1
    shared = False  # torch lets one bias serve all outputs
    if b is not None:
        shared = b == (1,) and not single and w[0] != 1
        if b != w[:-1] and not shared:
            raise ValueError(f"linear: expected a bias of shape {list(w[:-1])}, got {list(b)}")
    if activation is not None and ACTIVATIONS[activation].gated and (single or w[0] % 2):
        raise ValueError(f"linear: {activation} expects a weight of shape (2M, K), got {list(w)}")
    if single:
        weight = _shaped(kind, weight, 1, -1)
        bias = None if bias is None else _shaped(kind, bias, 1)
    if shared:
        bias = bias.expand(w[0]) if kind in ("Tensor", "torch") else bias.repeat(w[0])
    out = _ops(kind).linear(input, weight, bias, activation)
    return _shaped(kind, out, *x[:-1]) if single else out


# --- softmax ----------------------------------------------------------------------------------------------------------


def softmax(input: Any, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None) -> Any:
    """exp(x) / Σ exp(x) along ``dim``, the maximum subtracted first.

    Args:
        input: any shape. ``dim`` None picks as torch does (0 for 0, 1 or 3 dimensions, else 1), with a warning.
        dtype: what to compute in and return; the input is converted first.

    Raises:
        IndexError: ``dim`` out of range. TypeError: an integer input without ``dtype``.
    """
    return _softmax("softmax", input, dim, _stacklevel, dtype)


def log_softmax(input: Any, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None) -> Any:
    """x − logsumexp(x) along ``dim``, the maximum subtracted first. Arguments and errors as for ``softmax``."""
    return _softmax("log_softmax", input, dim, _stacklevel, dtype)


def _softmax(name: str, input: Any, dim: int | None, stacklevel: int, dtype: Any) -> Any:
    if isinstance(input, Tensor) and dtype is None:
        made = fused.plain_softmax(input, dim, name == "log_softmax")
        if made is not None:
            return made
    plain = dtype is None and _are_plain(input)
    kind = "Tensor" if plain else _kind(name, input=input)
    ndim = len(_bare(input).shape)
    if dim is None:
        dim = 0 if ndim in (0, 1, 3) else 1
        warnings.warn(f"{name}: the implicit choice of dim is deprecated; pass dim={dim}", stacklevel=stacklevel)
    if not isinstance(dim, (int, np.integer)) or isinstance(dim, bool):
        raise TypeError(f"{name}: expected dim to be an int, got {type(dim).__name__}")
    if not -max(ndim, 1) <= dim < max(ndim, 1):
        raise IndexError(f"{name}: dim {dim} is out of range for an input of {ndim} dimensions")
    if kind == "torch" and dtype is not None:
        import torch

        if not isinstance(dtype, torch.dtype):
            dtype = getattr(torch, storage.as_dtype(dtype).name)
    if not plain and not _is_floating(input):
        if dtype is None:
            raise TypeError(f"{name}: expected a floating dtype, got {input.dtype}; pass dtype=")
        input = input.to(dtype) if kind in ("Tensor", "torch") else input.astype(storage.numpy_dtype(dtype))
    flat = _shaped(kind, input, 1) if ndim == 0 else input
    out = _ops(kind).softmax(flat, int(dim) % max(ndim, 1), name == "log_softmax", dtype)
    return _shaped(kind, out) if ndim == 0 else out


# --- losses over classes ----------------------------------------------------------------------------------------------


def _reduction(name: str, size_average: bool | None, reduce: bool | None, reduction: str) -> str:
    if size_average is not None or reduce is not None:
        reduction = "none" if reduce is False else "sum" if size_average is False else "mean"
        warnings.warn(f"{name}: size_average and reduce are deprecated; use reduction={reduction!r}", stacklevel=3)
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"{name}: expected reduction 'none', 'mean' or 'sum', got {reduction!r}")
    return reduction


_PLAIN = {reduction: LossOptions(reduction, -100, 0.0, 0.0, 0.0) for reduction in ("mean", "sum")}
_PLAIN_ARGUMENTS = (None, -100, None, 0.0, 0.0, None, False)


def _options(
    name: str, reduction: str, ignore_index: int, label_smoothing: float, z_loss: float, softcap: float | None
) -> LossOptions:
    if (ignore_index, label_smoothing, z_loss, softcap) == (-100, 0.0, 0.0, None) and reduction in _PLAIN:
        return _PLAIN[reduction]
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"{name}: expected label_smoothing between 0 and 1, got {label_smoothing}")
    if not (z_loss >= 0.0 and math.isfinite(z_loss)):
        raise ValueError(f"{name}: expected z_loss to be a finite number that is not negative, got {z_loss}")
    if softcap is not None and not (softcap > 0.0 and math.isfinite(softcap)):
        raise ValueError(f"{name}: expected softcap to be None or a finite positive number, got {softcap}")
    return LossOptions(reduction, int(ignore_index), float(label_smoothing), float(z_loss), float(softcap or 0.0))


def _check_classes(name: str, shape: tuple[int, ...], input: Any, target: Any, weight: Any, ignore_index: int) -> bool:
    """Check a target (and class weights) against the shape of the logits; True if it holds class probabilities."""
    classes, rows = shape[1 if len(shape) > 1 else 0], (*shape[:1], *shape[2:]) if len(shape) > 1 else ()
    if classes == 0:
        raise ValueError(f"{name}: expected at least one class, got logits of shape {list(shape)}")
    if weight is not None:
        _same_dtype(name, input=input, weight=weight)
        if tuple(weight.shape) != (classes,):
            raise ValueError(
                f"{name}: expected a weight of shape [{classes}], one for each class, got {list(weight.shape)}"
            )
        if getattr(weight, "requires_grad", False):
            raise ValueError(
                f"{name}: class weights are constants, got a weight that requires grad; pass weight.detach()"
            )
    of_target = tuple(_bare(target).shape)
    if of_target == shape:
        if not _is_floating(_bare(target)):
            raise TypeError(
                f"{name}: a target in the shape of the logits holds probabilities: "
                f"expected a floating dtype, got {target.dtype}"
            )
        _same_dtype(name, input=input, target=target)
        if ignore_index >= 0:
            raise ValueError(f"{name}: ignore_index is for class indices, got {ignore_index} with class probabilities")
        return True
    if of_target != rows:
        raise ValueError(
            f"{name}: for logits of shape {list(shape)} expected a target of shape {list(rows)} (class indices) "
            f"or {list(shape)} (class probabilities), got {list(target.shape)}"
        )
    if not _is_integer(_bare(target)):
        raise TypeError(f"{name}: expected class indices of an integer dtype, got {target.dtype}")
    return False


def nll_loss(
    input: Any, target: Any, weight: Any = None, size_average: bool | None = None, ignore_index: int = -100,
    reduce: bool | None = None, reduction: str = "mean",
) -> Any:  # fmt: skip
    """−weight[t]·input[t] of each row: the negative log-likelihood of log-probabilities.

    Args:
        input: log-probabilities (C), (N, C) or (N, C, d…). target: class indices (), (N) or (N, d…).
        weight: (C). reduction: "mean" divides by the summed weights of the rows that are not ignored.

    Raises:
        ValueError, TypeError: shapes, dtypes, kinds. IndexError: a target outside [0, C) that is not ``ignore_index``.
    """
    kind = _kind("nll_loss", input=input, target=target, weight=weight)
    input, weight = _autocast(kind, False, input, weight)
    _same_dtype("nll_loss", input=input)
    o = _options("nll_loss", _reduction("nll_loss", size_average, reduce, reduction), ignore_index, 0.0, 0.0, None)
    if input.ndim == 0:
        raise ValueError("nll_loss: expected an input of shape (C), (N, C) or (N, C, d…), got a scalar")
    if _check_classes("nll_loss", tuple(input.shape), input, target, weight, -100):
        raise TypeError(f"nll_loss: expected class indices of an integer dtype, got {target.dtype}")
    return _ops(kind).nll_loss(input, target, weight, o)


def cross_entropy(
    input: Any, target: Any, weight: Any = None, size_average: bool | None = None, ignore_index: int = -100,
    reduce: bool | None = None, reduction: str = "mean", label_smoothing: float = 0.0, *, z_loss: float = 0.0,
    softcap: float | None = None, return_stats: bool = False,
) -> Any:  # fmt: skip
    """The cross-entropy of logits and targets; with a scalar reduction the gradient is made in the same pass.

    Args:
        input: logits (C), (N, C) or (N, C, d…).
        target: class indices (), (N) or (N, d…), or class probabilities in the shape of the logits.
        weight: (C), a factor for each class.
        ignore_index: rows with this class index count nothing, whatever they hold.
        reduction: "none"; "sum"; "mean": over the weights of the targets (indices) or over the rows (probabilities).
        label_smoothing: this part of each target is spread evenly over all classes (Szegedy et al. 2016).
        z_loss: adds z_loss·logsumexp² to each row (PaLM, Chowdhery et al. 2022); "mean" averages it, unweighted, over
            the rows that are not ignored.
        softcap: replaces the logits by softcap·tanh(logits/softcap) before everything else (Gemma 2, 2024).
        return_stats: also return ``LossStats(lse, argmax)``.

    Returns:
        The loss in the dtype of the logits, 0-d or in the shape of the rows; or ``(loss, stats)``.

    Raises:
        ValueError, TypeError: shapes, dtypes, kinds, options. IndexError: a target outside [0, C), on the CPU; on a GPU
            its row becomes NaN and ``tilegrad.synchronize()`` raises.
    """
    arguments = (size_average, ignore_index, reduce, label_smoothing, z_loss, softcap, return_stats)
    if isinstance(input, Tensor) and weight is None and arguments == _PLAIN_ARGUMENTS and reduction in _PLAIN:
        made = fused.plain_cross_entropy(input, target, _PLAIN[reduction])
        if made is not None:
            return made
    kind = "Tensor"
    if not (_are_plain(input, weight) and isinstance(target, Tensor) and type(target._array) is np.ndarray):
        kind = _kind("cross_entropy", input=input, target=target, weight=weight)
        input, target, weight = _autocast(kind, False, input, target, weight)
        _same_dtype("cross_entropy", input=input)
    reduction = _reduction("cross_entropy", size_average, reduce, reduction)
    o = _options("cross_entropy", reduction, ignore_index, label_smoothing, z_loss, softcap)
    if _bare(input).ndim == 0:
        raise ValueError("cross_entropy: expected logits of shape (C), (N, C) or (N, C, d…), got a scalar")
    _check_classes("cross_entropy", tuple(_bare(input).shape), input, target, weight, ignore_index)
    made = _ops(kind).cross_entropy(input, target, weight, o, return_stats)
    return (made[0], LossStats(*made[1:])) if return_stats else made


def linear_cross_entropy(
    input: Any, linear_weight: Any, target: Any, *, linear_bias: Any = None, weight: Any = None,
    reduction: str = "mean", ignore_index: int | None = None, label_smoothing: float = 0.0, options: Any = None,
    z_loss: float = 0.0, softcap: float | None = None, return_stats: bool = False,
) -> Any:  # fmt: skip
    """``cross_entropy(linear(input, linear_weight, linear_bias), target)`` without ever holding all of the logits.

    Args:
        input: (K) or (N, K).
        linear_weight: (C, K), or (C, d…, K) for a loss at each of d… positions (with input (N, K)).
        target: class indices (), (N) or (N, d…), or class probabilities (C), (N, C) or (N, C, d…).
        linear_bias: the shape of ``linear_weight`` without K.
        ignore_index: None is −100 for indices; it cannot be given with probabilities.
        options: accepted for torch's sake; the logits are never stored whole with or without.
        weight, reduction, label_smoothing, z_loss, softcap, return_stats: as for ``cross_entropy``.

    Raises:
        As ``cross_entropy``.
    """
    name = "linear_cross_entropy"
    kind = _kind(name, input=input, linear_weight=linear_weight, target=target, linear_bias=linear_bias, weight=weight)
    # (Under autocast the class weights and probabilities follow the logits, which a matrix product makes.)
    input, linear_weight, linear_bias, weight, target = _autocast(
        kind, True, input, linear_weight, linear_bias, weight, target
    )
    _same_dtype(name, input=input, linear_weight=linear_weight, linear_bias=linear_bias)
    o = _options(
        name,
        _reduction(name, None, None, reduction),
        -100 if ignore_index is None else ignore_index,
        label_smoothing,
        z_loss,
        softcap,
    )
    if input.ndim not in (1, 2) or linear_weight.ndim < 2 or input.shape[-1] != linear_weight.shape[-1]:
        raise ValueError(
            f"{name}: expected input (K) or (N, K) and linear_weight (C, K) or (C, d…, K), got shapes "
            f"{list(input.shape)} and {list(linear_weight.shape)}"
        )
    classes, *positions, features = linear_weight.shape
    if linear_bias is not None and tuple(linear_bias.shape) != (classes, *positions):
        raise ValueError(
            f"{name}: expected a linear_bias of shape {[classes, *positions]}, got {list(linear_bias.shape)}"
        )
    if positions and input.ndim == 1:
        raise ValueError(
            f"{name}: with a linear_weight of shape {list(linear_weight.shape)} expected input (N, K), "
            f"got {list(input.shape)}"
        )
    shape = (*input.shape[:-1], classes, *positions)
    probabilities = _check_classes(name, shape, input, target, weight, -100)
    if probabilities and ignore_index is not None:
        raise ValueError(f"{name}: ignore_index is for class indices, got {ignore_index} with class probabilities")
    samples, losses = (input.shape[0] if input.ndim == 2 else 1), math.prod(positions)
    made = _ops(kind).linear_cross_entropy(
        _shaped(kind, input, samples, features),
        _shaped(kind, linear_weight, classes, losses, features),
        None if linear_bias is None else _shaped(kind, linear_bias, classes, losses),
        _shaped(kind, target, *((samples, classes, losses) if probabilities else (samples, losses))),
        weight, o, return_stats,
    )  # fmt: skip
    rows = (*input.shape[:-1], *positions)
    loss, *stats = made if return_stats else (made,)
    loss = _shaped(kind, loss, *rows) if reduction == "none" else loss
    return (loss, LossStats(*(_shaped(kind, s, *rows) for s in stats))) if return_stats else loss
