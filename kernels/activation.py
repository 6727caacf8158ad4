"""The activations of ``linear``, each above its derivative, as functions that kernels call.

Both take the pre-activation ``z`` in float32 or float64. Parameters are torch's defaults. Nothing here overflows, and
no NaN is lost: ``tl.maximum`` and ``tl.minimum`` drop them, so they stand only where z comes in again.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl
from triton.language.extra import libdevice

SELU_ALPHA = tl.constexpr(1.6732632423543772848170429916717)  # Klambauer et al. 2017, "Self-Normalizing Networks"
SELU_SCALE = tl.constexpr(1.0507009873554804934193349852946)
GELU_TANH_SCALE = tl.constexpr(0.79788456080286535588)  # √(2/π)
GELU_TANH_CUBIC = tl.constexpr(0.044715)  # Hendrycks & Gimpel 2016, "Gaussian Error Linear Units"
SQRT_HALF = tl.constexpr(0.70710678118654752440)
NORMAL_DENSITY = tl.constexpr(0.39894228040143267794)  # 1/√(2π)
LEAKY_SLOPE = tl.constexpr(0.01)
SOFTPLUS_THRESHOLD = tl.constexpr(20.0)


@triton.jit
def sigmoid(z):
    # exp of a negative number only: neither side overflows, and small results keep their relative precision.
    e = tl.exp(-tl.abs(z))
    return tl.where(z >= 0, 1.0, e) * (1.0 / (1.0 + e))


@triton.jit
def sigmoid_grad(z):
    e = tl.exp(-tl.abs(z))
    s = 1.0 / (1.0 + e)
    return e * s * s  # not s (1 − s), which cancels


@triton.jit
def tanh(z):
    return libdevice.tanh(z)


@triton.jit
def tanh_grad(z):
    t = libdevice.tanh(z)
    return 1.0 - t * t


@triton.jit
def relu(z):
    return tl.where(z <= 0, 0.0, z)  # keeps NaN


@triton.jit
def relu_grad(z):
    return tl.where(z <= 0, 0.0, tl.full(z.shape, 1.0, z.dtype))  # 1 for NaN, as in torch


@triton.jit
def relu2(z):
    return relu(z) * relu(z)


@triton.jit
def relu2_grad(z):
    return 2.0 * relu(z)


@triton.jit
def leaky_relu(z):
    return tl.where(z > 0, z, z * LEAKY_SLOPE)


@triton.jit
def leaky_relu_grad(z):
    return tl.where(z > 0, 1.0, tl.full(z.shape, LEAKY_SLOPE, z.dtype))


@triton.jit
def elu(z):
    return tl.where(z > 0, z, libdevice.expm1(z))


@triton.jit
def elu_grad(z):
    return tl.where(z > 0, 1.0, tl.exp(z))


@triton.jit
def selu(z):
    return tl.where(z > 0, z, libdevice.expm1(z) * SELU_ALPHA) * SELU_SCALE


@triton.jit
def selu_grad(z):
    return tl.where(z > 0, 1.0, tl.exp(z) * SELU_ALPHA) * SELU_SCALE


@triton.jit
def normal_tail(z):
    """½ erfc(|z|/√2): how much of a normal distribution lies beyond |z|.

    In float32 exp(−z²/2) t P(t) with t = 1/(1 + 0.3|z|), the form of Abramowitz & Stegun 1964, 7.1.26. P is of degree
    7, fitted so that no error is above 1e-8, and none in the tail above 3e-7 of the value. It takes half as many
    instructions as erfc, shares its exponential with the density in the derivative, and cancels nowhere.
    """
    if z.dtype == tl.float64:
        return 0.5 * libdevice.erfc(tl.abs(z) * SQRT_HALF)
    t = 1.0 / (1.0 + 0.3 * tl.abs(z))
    p = 0.03598302975296974 * t - 0.1581791192293167
    p = p * t + 0.20747333765029907
    p = p * t - 0.054177287966012955
    p = p * t + 0.12853559851646423
    p = p * t + 0.10000619292259216
    p = p * t + 0.12072644382715225
    p = p * t + 0.11963183432817459
    return tl.exp(-0.5 * z * z) * (t * p)


@triton.jit
def normal_cdf(z):
    tail = normal_tail(z)
    return tl.where(z < 0, tail, 1.0 - tail)


@triton.jit
def gelu(z):
    return z * normal_cdf(z)


@triton.jit
def gelu_grad(z):
    return normal_cdf(z) + z * (tl.exp(-0.5 * z * z) * NORMAL_DENSITY)


@triton.jit
def gelu_tanh(z):
    # 0.5 (1 + tanh u) = sigmoid(2u), without the cancellation that 1 + tanh u has for negative u.
    return z * sigmoid(2.0 * (z * GELU_TANH_SCALE) * (1.0 + z * z * GELU_TANH_CUBIC))


@triton.jit
def gelu_tanh_grad(z):
    u = 2.0 * (z * GELU_TANH_SCALE) * (1.0 + z * z * GELU_TANH_CUBIC)
    squared = tl.minimum(z * z, 1e4)  # where the slope of the sigmoid has long come to 0, which no inf may meet
    slope = (2.0 + 6.0 * (squared * GELU_TANH_CUBIC)) * GELU_TANH_SCALE
    return sigmoid(u) + z * sigmoid_grad(u) * slope


@triton.jit
def silu(z):
    return z * sigmoid(z)


@triton.jit
def silu_grad(z):
    return sigmoid(z) + z * sigmoid_grad(z)


@triton.jit
def softplus(z):
    # torch returns z itself above the threshold; below it log(1 + exp(z)).
    return tl.where(z > SOFTPLUS_THRESHOLD, z, tl.maximum(z, 0.0) + libdevice.log1p(tl.exp(-tl.abs(z))))


@triton.jit
def softplus_grad(z):
    return tl.where(z > SOFTPLUS_THRESHOLD, 1.0, sigmoid(z))


@triton.jit
def mish(z):
    # z tanh(log(1 + e)), e = exp(z): the tanh is w / (w + 2) with w = (1 + e)² − 1 = e (e + 2), where nothing cancels.
    # At the threshold it has come to 1.
    e = tl.exp(tl.minimum(z, SOFTPLUS_THRESHOLD))
    w = e * (e + 2.0)
    return z * (w / (w + 2.0))


@triton.jit
def mish_grad(z):
    # t + z (1 − t²) sigmoid(z), where 1 − t² = 4 (1 + e)² / (w + 2)².
    e = tl.exp(tl.minimum(z, SOFTPLUS_THRESHOLD))
    w = e * (e + 2.0)
    s = 1.0 / (w + 2.0)
    slope = tl.where(z > SOFTPLUS_THRESHOLD, 0.0, (4.0 * e * s) * ((1.0 + e) * s))
    return w * s + z * slope


class Activation(NamedTuple):
    """One activation, of z, above its derivative."""

    of: Any
    grad: Any
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


def activation_of(name: str | None) -> Activation:
    """The activation of a name; None is that which changes nothing, with functions None.

    Raises:
        ValueError: an unknown name.
    """
    if name is None:
        return Activation(None, None)
    if name not in ACTIVATIONS:
        raise ValueError(f"linear: expected activation None or one of {', '.join(ACTIVATIONS)}, got {name!r}")
    return ACTIVATIONS[name]
