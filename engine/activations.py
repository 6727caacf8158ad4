"""The activations of ``linear``, each above its derivative, on plain arrays of any library.

Both are functions of the pre-activation ``z`` and an array namespace ``xp`` (numpy, cupy, or the recorded functions,
which gives second derivatives). 16-bit inputs have been widened before they come here. Parameters are torch's defaults.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

Array = Any

SELU_ALPHA = 1.6732632423543772848170429916717  # Klambauer et al. 2017, "Self-Normalizing Neural Networks"
SELU_SCALE = 1.0507009873554804934193349852946
GELU_TANH_SCALE = math.sqrt(2.0 / math.pi)
GELU_TANH_CUBIC = 0.044715  # Hendrycks & Gimpel 2016, "Gaussian Error Linear Units"


def sigmoid(xp: Any, z: Array) -> Array:
    # exp of a negative number only: neither side overflows, and small results keep their relative precision.
    e = xp.exp(-xp.abs(z))
    return xp.where(z >= 0, 1 / (1 + e), e / (1 + e))


def sigmoid_grad(xp: Any, z: Array) -> Array:
    e = xp.exp(-xp.abs(z))
    return e / (1 + e) ** 2


def log_sigmoid(xp: Any, z: Array) -> Array:
    return xp.minimum(z, 0) - xp.log1p(xp.exp(-xp.abs(z)))


def log_sigmoid_grad(xp: Any, z: Array) -> Array:
    return sigmoid(xp, -z)


def tanh(xp: Any, z: Array) -> Array:
    return xp.tanh(z)


def tanh_grad(xp: Any, z: Array) -> Array:
    return 1 - xp.tanh(z) ** 2


def relu(xp: Any, z: Array) -> Array:
    return xp.maximum(z, 0)  # keeps NaN


def relu_grad(xp: Any, z: Array) -> Array:
    return xp.where(z <= 0, 0, xp.ones_like(z))  # 1 for NaN, as in torch


def relu2(xp: Any, z: Array) -> Array:
    return xp.maximum(z, 0) ** 2


def relu2_grad(xp: Any, z: Array) -> Array:
    return 2 * xp.maximum(z, 0)


def leaky_relu(xp: Any, z: Array, slope: float = 0.01) -> Array:
    return xp.where(z > 0, z, slope * z)


def leaky_relu_grad(xp: Any, z: Array, slope: float = 0.01) -> Array:
    return xp.where(z > 0, xp.ones_like(z), slope)


def elu(xp: Any, z: Array, alpha: float = 1.0) -> Array:
    return xp.where(z > 0, z, alpha * xp.expm1(xp.minimum(z, 0)))


def elu_grad(xp: Any, z: Array, alpha: float = 1.0) -> Array:
    return xp.where(z > 0, xp.ones_like(z), alpha * xp.exp(xp.minimum(z, 0)))


def selu(xp: Any, z: Array) -> Array:
    return SELU_SCALE * elu(xp, z, SELU_ALPHA)


def selu_grad(xp: Any, z: Array) -> Array:
    return SELU_SCALE * elu_grad(xp, z, SELU_ALPHA)


def normal_cdf(xp: Any, z: Array) -> Array:
    return 0.5 * xp.erfc(-math.sqrt(0.5) * z) if hasattr(xp, "erfc") else 0.5 * erfc(-math.sqrt(0.5) * z)


def gelu(xp: Any, z: Array) -> Array:
    return z * normal_cdf(xp, z)


def gelu_grad(xp: Any, z: Array) -> Array:
    density = math.sqrt(0.5 / math.pi) * xp.exp(-0.5 * z * z)
    return normal_cdf(xp, z) + z * density


def gelu_tanh(xp: Any, z: Array) -> Array:
    # 0.5 (1 + tanh u) = sigmoid(2u), without the cancellation that 1 + tanh u has for negative u.
    return z * sigmoid(xp, 2 * GELU_TANH_SCALE * (z + GELU_TANH_CUBIC * z**3))


def gelu_tanh_grad(xp: Any, z: Array) -> Array:
    u = 2 * GELU_TANH_SCALE * (z + GELU_TANH_CUBIC * z**3)
    slope = 2 * GELU_TANH_SCALE * (1 + 3 * GELU_TANH_CUBIC * z**2)
    return sigmoid(xp, u) + z * sigmoid_grad(xp, u) * slope


def silu(xp: Any, z: Array) -> Array:
    return z * sigmoid(xp, z)


def silu_grad(xp: Any, z: Array) -> Array:
    return sigmoid(xp, z) + z * sigmoid_grad(xp, z)


def softplus(xp: Any, z: Array, beta: float = 1.0, threshold: float = 20.0) -> Array:
    # torch returns z itself above the threshold; below it log(1 + exp(z)) without overflow.
    u = beta * z
    return xp.where(u > threshold, z, (xp.maximum(u, 0) + xp.log1p(xp.exp(-xp.abs(u)))) / beta)


def softplus_grad(xp: Any, z: Array, beta: float = 1.0, threshold: float = 20.0) -> Array:
    u = beta * z
    return xp.where(u > threshold, xp.ones_like(z), sigmoid(xp, u))


def mish(xp: Any, z: Array) -> Array:
    return z * xp.tanh(softplus(xp, z))


def mish_grad(xp: Any, z: Array) -> Array:
    t = xp.tanh(softplus(xp, z))
    return t + z * (1 - t**2) * sigmoid(xp, z)


class Activation(NamedTuple):
    """One activation: ``of(xp, z)`` above its derivative ``grad(xp, z)``."""

    of: Callable[[Any, Array], Array]
    grad: Callable[[Any, Array], Array]
    gated: bool = False  # of one half of z (the gate), times the other
    by_sign: bool = False  # the derivative needs only the sign of z, which the output shares


ACTIVATIONS = {
    "relu": Activation(relu, relu_grad, by_sign=True),
    "leaky_relu": Activation(leaky_relu, leaky_relu_grad, by_sign=True),
    "elu": Activation(elu, elu_grad),
    "selu": Activation(selu, selu_grad),
    "gelu": Activation(gelu, gelu_grad),
    "gelu_tanh": Activation(gelu_tanh, gelu_tanh_grad),
    "silu": Activation(silu, silu_grad),
    "mish": Activation(mish, mish_grad),
    "sigmoid": Activation(sigmoid, sigmoid_grad),
    "tanh": Activation(tanh, tanh_grad),
    "softplus": Activation(softplus, softplus_grad),
    "relu2": Activation(relu2, relu2_grad),
    "swiglu": Activation(silu, silu_grad, gated=True),
    "geglu": Activation(gelu, gelu_grad, gated=True),
}

# As compiled code numbers them.
CODES: dict[str | None, int] = {name: code for code, name in enumerate(ACTIVATIONS)} | {None: -1}


def backward(xp: Any, join: Callable[..., Array], name: str, z: Array, grad: Array) -> Array:
    """The gradient of the pre-activation z from that of the output; ``join`` puts a list of arrays together along a
    dimension, under whatever name the library has for it."""
    act = ACTIVATIONS[name]
    if not act.gated:
        return grad * act.grad(xp, z)
    half = z.shape[-1] // 2
    gate, up = z[..., :half], z[..., half:]
    return join([grad * up * act.grad(xp, gate), grad * act.of(xp, gate)], -1)


# Cody, W. J. (1969), "Rational Chebyshev approximations for the error function", Mathematics of Computation 23:
# numerators and denominators, highest power first, of erf(x)/x in x² on [0, 0.46875], of exp(x²) erfc(x) in x on
# [0.46875, 4], and of the remainder in 1/x² beyond.
_ERF = (
    (1.85777706184603153e-1, 3.16112374387056560, 1.13864154151050156e2, 3.77485237685302021e2, 3.20937758913846947e3),
    (1.0, 2.36012909523441209e1, 2.44024637934444173e2, 1.28261652607737228e3, 2.84423683343917062e3),
)
_ERFC = (
    (2.15311535474403846e-8, 5.64188496988670089e-1, 8.88314979438837594, 6.61191906371416295e1, 2.98635138197400131e2,
     8.81952221241769090e2, 1.71204761263407058e3, 2.05107837782607147e3, 1.23033935479799725e3),
    (1.0, 1.57449261107098347e1, 1.17693950891312499e2, 5.37181101862009858e2, 1.62138957456669019e3,
     3.29079923573345963e3, 4.36261909014324716e3, 3.43936767414372164e3, 1.23033935480374942e3),
)  # fmt: skip
_TAIL = (
    (1.63153871373020978e-2, 3.05326634961232344e-1, 3.60344899949804439e-1, 1.25781726111229246e-1,
     1.60837851487422766e-2, 6.58749161529837803e-4),
    (1.0, 2.56852019228982242, 1.87295284992346047, 5.27905102951428412e-1, 6.05183413124413191e-2,
     2.33520497626869185e-3),
)  # fmt: skip


def _ratio(coefficients: tuple[tuple[float, ...], tuple[float, ...]], x: Array) -> Array:
    above, below = coefficients
    p, q = above[0] * x + above[1], below[0] * x + below[1]
    for a, b in zip(above[2:], below[2:], strict=True):
        p, q = p * x + a, q * x + b
    return p / q


def erfc(z: Array) -> Array:
    """1 − erf(z) to full relative precision in both tails, computed in float64, in the dtype of ``z``.

    Source: Cody (1969), the coefficients above.
    """
    xp: Any = np
    if type(z).__module__.partition(".")[0] == "cupy":
        import cupyx.scipy.special as special

        return special.erfc(z)
    x = z.astype(np.float64)
    y = xp.abs(x)
    small = 1 - x * _ratio(_ERF, xp.minimum(y, 0.46875) ** 2)
    capped = xp.clip(y, 0.46875, 30.0)  # erfc(30) is 0 in float64
    squared_inverse = 1 / capped**2
    middle = _ratio(_ERFC, xp.minimum(capped, 4.0))
    tail = (1 / math.sqrt(math.pi) - squared_inverse * _ratio(_TAIL, squared_inverse)) / capped
    # exp(-y²) with y² split in a short head and a rest, so that no rounding of y² is amplified.
    head = xp.trunc(capped * 16) / 16
    positive = xp.exp(-head * head) * xp.exp(-(capped - head) * (capped + head)) * xp.where(capped < 4.0, middle, tail)
    result = xp.where(y <= 0.46875, small, xp.where(x < 0, 2 - positive, positive))
    return xp.where(xp.isnan(x), x, result).astype(z.dtype)
