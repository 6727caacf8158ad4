"""Initial values, written into a tensor in place and not recorded. Every function returns its tensor.

Sources: Glorot & Bengio 2010, "Understanding the difficulty of training deep feedforward neural networks"
(xavier); He et al. 2015, "Delving deep into rectifiers" (kaiming).
"""

from __future__ import annotations

import math
import warnings
from typing import Any

from ..autograd import no_grad
from ..creation import eye
from ..tensor import Tensor

__all__ = [
    "calculate_gain",
    "constant_",
    "eye_",
    "kaiming_normal_",
    "kaiming_uniform_",
    "normal_",
    "ones_",
    "uniform_",
    "xavier_normal_",
    "xavier_uniform_",
    "zeros_",
]


def uniform_(tensor: Tensor, a: float = 0.0, b: float = 1.0, generator: Any = None) -> Tensor:
    """Fill with draws from U(a, b)."""
    with no_grad():
        tensor.uniform_(a, b, generator)
    return tensor


def normal_(tensor: Tensor, mean: float = 0.0, std: float = 1.0, generator: Any = None) -> Tensor:
    """Fill with draws from N(mean, std²)."""
    with no_grad():
        tensor.normal_(mean, std, generator)
    return tensor


def constant_(tensor: Tensor, val: float) -> Tensor:
    """Fill with one value."""
    with no_grad():
        tensor.fill_(val)
    return tensor


def ones_(tensor: Tensor) -> Tensor:
    """Fill with ones."""
    return constant_(tensor, 1.0)


def zeros_(tensor: Tensor) -> Tensor:
    """Fill with zeros."""
    return constant_(tensor, 0.0)


def eye_(tensor: Tensor) -> Tensor:
    """Ones on the main diagonal of a 2-d tensor and zeros elsewhere.

    Raises:
        ValueError: not 2-d.
    """
    if tensor.ndim != 2:
        raise ValueError(f"eye_: expected a tensor of 2 dimensions, got shape {list(tensor.shape)}")
    with no_grad():
        tensor.copy_(eye(*tensor.shape))
    return tensor


def _fans(tensor: Tensor) -> tuple[int, int]:
    """fan_in and fan_out of a weight of shape (out, in, *kernel)."""
    if tensor.ndim < 2:
        raise ValueError(
            f"fan in and fan out: expected a weight of at least 2 dimensions, got shape {list(tensor.shape)}"
        )
    receptive_field = math.prod(tensor.shape[2:])
    return tensor.shape[1] * receptive_field, tensor.shape[0] * receptive_field


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """The factor that keeps a signal's variance through a layer with this nonlinearity, as torch has it.

    linear, conv…, sigmoid: 1; tanh: 5/3; relu: √2; leaky_relu of slope ``param`` (0.01): √(2/(1 + slope²));
    selu: 3/4.

    Raises:
        ValueError: another name, or a slope that is no number.
    """
    gains = {"linear": 1.0, "sigmoid": 1.0, "tanh": 5 / 3, "relu": math.sqrt(2.0), "selu": 0.75}
    gains |= {f"conv{transposed}{d}d": 1.0 for transposed in ("", "_transpose") for d in (1, 2, 3)}
    if nonlinearity == "leaky_relu":
        slope = 0.01 if param is None else param
        if isinstance(slope, bool) or not isinstance(slope, (int, float)):
            raise ValueError(f"calculate_gain: expected the slope of leaky_relu as a number, got {slope!r}")
        return math.sqrt(2.0 / (1 + slope**2))
    if nonlinearity not in gains:
        raise ValueError(f"calculate_gain: expected one of {', '.join([*gains, 'leaky_relu'])}, got {nonlinearity!r}")
    return gains[nonlinearity]


def xavier_uniform_(tensor: Tensor, gain: float = 1.0, generator: Any = None) -> Tensor:
    """Fill a weight (out, in, …) from U(-a, a), a = gain · √(6 / (fan_in + fan_out)).

    Raises:
        ValueError: fewer than 2 dimensions.
    """
    bound = gain * math.sqrt(6.0 / sum(_fans(tensor)))
    return uniform_(tensor, -bound, bound, generator)


def xavier_normal_(tensor: Tensor, gain: float = 1.0, generator: Any = None) -> Tensor:
    """Fill a weight (out, in, …) from N(0, std²), std = gain · √(2 / (fan_in + fan_out)).

    Raises:
        ValueError: fewer than 2 dimensions.
    """
    return normal_(tensor, 0.0, gain * math.sqrt(2.0 / sum(_fans(tensor))), generator)


def _kaiming_std(tensor: Tensor, a: float, mode: str, nonlinearity: str) -> float:
    if mode.lower() not in ("fan_in", "fan_out"):
        raise ValueError(f"expected mode 'fan_in' or 'fan_out', got {mode!r}")
    fan = _fans(tensor)[mode.lower() == "fan_out"]
    return calculate_gain(nonlinearity, a) / math.sqrt(fan)


def kaiming_uniform_(
    tensor: Tensor,
    a: float = 0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: Any = None,
) -> Tensor:
    """Fill a weight (out, in, …) from U(-b, b), b = gain · √(3 / fan); ``a`` is the slope of a leaky relu.

    Raises:
        ValueError: fewer than 2 dimensions, an unknown mode or nonlinearity.
    """
    if _is_empty(tensor):
        return tensor
    bound = math.sqrt(3.0) * _kaiming_std(tensor, a, mode, nonlinearity)
    return uniform_(tensor, -bound, bound, generator)


def kaiming_normal_(
    tensor: Tensor,
    a: float = 0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: Any = None,
) -> Tensor:
    """Fill a weight (out, in, …) from N(0, std²), std = gain / √fan; ``a`` is the slope of a leaky relu.

    Raises:
        ValueError: fewer than 2 dimensions, an unknown mode or nonlinearity.
    """
    if _is_empty(tensor):
        return tensor
    return normal_(tensor, 0.0, _kaiming_std(tensor, a, mode, nonlinearity), generator)


def _is_empty(tensor: Tensor) -> bool:
    if 0 in tensor.shape:
        warnings.warn("Initializing zero-element tensors is a no-op", stacklevel=3)
    return 0 in tensor.shape
