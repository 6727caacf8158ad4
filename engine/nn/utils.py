"""What is done to all parameters at once: clipping their gradients, laying them end to end in a vector."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ..autograd import no_grad
from ..creation import zeros
from ..shaping import cat
from ..storage import namespace, on_device_of, wide
from ..tensor import Tensor

__all__ = ["clip_grad_norm_", "clip_grad_value_", "parameters_to_vector", "vector_to_parameters"]


def _gradients(parameters: Tensor | Iterable[Tensor]) -> list[Tensor]:
    parameters = [parameters] if isinstance(parameters, Tensor) else parameters
    return [p.grad for p in parameters if p.grad is not None]


def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
) -> Tensor:
    """Scale the gradients in place by min(1, max_norm / (norm + 1e-6)); returns the norm, a 0-d tensor.

    The norm is that of all gradients laid end to end, of order ``norm_type`` (``inf``: the largest
    magnitude). For 16-bit gradients it is summed, and returned, in float32.

    Raises:
        RuntimeError: ``error_if_nonfinite`` is set and the norm is NaN or infinite (to know that, it waits
            for the GPU); no gradient has been changed then.
    """
    gradients = _gradients(parameters)
    if not gradients:
        return zeros(())
    first = gradients[0]._array
    xp = namespace(first)
    with (
        np.errstate(all="ignore"),
        on_device_of(first),
    ):  # NaN and inf are values here, as in torch
        norms = [xp.linalg.norm(wide(g._array).ravel(), norm_type) for g in gradients if g.numel()]
        total = xp.linalg.norm(xp.stack(norms), norm_type) if norms else np.float32(0)
        if error_if_nonfinite and not bool(xp.isfinite(total)):
            raise RuntimeError(
                f"clip_grad_norm_: expected a finite norm of order {norm_type}, got {float(total)}; "
                "error_if_nonfinite=False scales them by it all the same"
            )
        # Always multiplied by: to see first whether it is 1 would wait for the GPU.
        scale = xp.minimum(max_norm / (total + 1e-6), 1.0)
        for g in gradients:
            # Computed in float32 and rounded once where the gradient has 16 bits.
            xp.multiply(g._array, scale, out=g._array, casting="unsafe")
            g._bump()
    return gradients[0]._make(xp.asarray(total))


def clip_grad_value_(parameters: Tensor | Iterable[Tensor], clip_value: float) -> None:
    """Clamp every element of the gradients to [-clip_value, clip_value] in place; NaN stays NaN."""
    for g in _gradients(parameters):
        xp = namespace(g._array)
        with on_device_of(g._array):
            xp.maximum(g._array, -float(clip_value), out=g._array)
            xp.minimum(g._array, float(clip_value), out=g._array)
        g._bump()


def parameters_to_vector(parameters: Iterable[Tensor]) -> Tensor:
    """All parameters laid end to end in one vector, a copy through which gradients flow."""
    return cat([p.reshape(-1) for p in parameters])


def vector_to_parameters(vec: Tensor, parameters: Iterable[Tensor]) -> None:
    """Copy consecutive pieces of ``vec`` into the parameters.

    Raises:
        TypeError: ``vec`` is not a Tensor. ValueError: it has not exactly as many elements as the parameters.
    """
    if not isinstance(vec, Tensor):
        raise TypeError(f"vector_to_parameters: expected a Tensor, got {type(vec).__name__}")
    parameters = list(parameters)
    count = sum(p.numel() for p in parameters)
    if vec.shape != (count,):
        raise ValueError(f"vector_to_parameters: expected a vector of {count} elements, got shape {list(vec.shape)}")
    start = 0
    with no_grad():
        for p in parameters:
            p.copy_(vec[start : start + p.numel()].reshape(p.shape))
            start += p.numel()
