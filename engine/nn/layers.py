"""The layers: Linear with its activation fused in, Dropout, Flatten, Identity, and the activations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ..activations import ACTIVATIONS
from ..creation import empty
from ..tensor import Tensor
from . import functional as F
from . import init
from .module import Module
from .parameter import Parameter


class Linear(Module):
    """y = act(x Wᵀ + b) in one kernel: x (…, in_features) → (…, out_features).

    ``weight`` is (out_features, in_features) and ``bias`` (out_features,); with a gated activation ("swiglu",
    "geglu") both have 2·out_features rows, gate above up. Both start from U(-1/√in_features, 1/√in_features),
    as in torch.

    Raises:
        ValueError: an unknown activation.
    """

    bias: Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        activation: str | None = None,
    ):
        super().__init__()
        if activation is not None and activation not in ACTIVATIONS:
            raise ValueError(f"Linear: expected activation None or one of {', '.join(ACTIVATIONS)}, got {activation!r}")
        self.in_features = in_features
        self.out_features = out_features
        self.activation = activation
        rows = out_features * (2 if activation is not None and ACTIVATIONS[activation].gated else 1)
        self.weight = Parameter(empty((rows, in_features), device=device, dtype=dtype))
        if bias:
            self.bias = Parameter(empty((rows,), device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weight and bias anew."""
        init.kaiming_uniform_(self.weight, a=math.sqrt(5))  # the bound is then 1/√in_features
        if self.bias is not None:
            bound = 1 / math.sqrt(self.in_features) if self.in_features > 0 else 0.0
            init.uniform_(self.bias, -bound, bound)

    def forward(self, input: Tensor) -> Tensor:
        """x: (…, in_features) → (…, out_features)."""
        return self.activated(input, self.activation)

    def activated(self, input: Tensor, activation: str | None) -> Tensor:
        """With the activation of ``F.linear`` of that name in the place of its own."""
        own = self._parameters
        if "weight" in own and "bias" in own:  # as attributes they are looked for everywhere else first
            return F.linear(input, own["weight"], own["bias"], activation=activation)
        return F.linear(input, self.weight, self.bias, activation=activation)

    def extra_repr(self) -> str:
        """As torch's, and the activation if there is one."""
        own = f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        return own if self.activation is None else f"{own}, activation={self.activation!r}"


class Identity(Module):
    """Returns its input; takes any arguments and uses none."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__()

    def forward(self, input: Tensor) -> Tensor:
        """The input itself."""
        return input


class Flatten(Module):
    """Makes dimensions ``start_dim`` to ``end_dim`` one; by default (N, d1, d2, …) → (N, d1·d2·…)."""

    def __init__(self, start_dim: int = 1, end_dim: int = -1):
        super().__init__()
        self.start_dim = start_dim
        self.end_dim = end_dim

    def forward(self, input: Tensor) -> Tensor:
        """The input with those dimensions merged."""
        return input.flatten(self.start_dim, self.end_dim)

    def extra_repr(self) -> str:
        """The dimensions."""
        return f"start_dim={self.start_dim}, end_dim={self.end_dim}"


class Dropout(Module):
    """While training, zeroes each element with probability ``p`` and scales the rest by 1/(1-p).

    Source: Srivastava et al. 2014, "Dropout: a simple way to prevent neural networks from overfitting".

    Raises:
        ValueError: ``p`` outside [0, 1].
    """

    def __init__(self, p: float = 0.5, inplace: bool = False):
        super().__init__()
        if not 0 <= p <= 1:
            raise ValueError(f"Dropout: expected a probability p between 0 and 1, got {p}")
        self.p = p
        self.inplace = inplace

    def forward(self, input: Tensor) -> Tensor:
        """A tensor of the input's shape."""
        return F.dropout(input, self.p, self.training, self.inplace)

    def extra_repr(self) -> str:
        """The probability."""
        return f"p={self.p}, inplace={self.inplace}"


# --- activations: elementwise, any shape; formulas and their sources are in nn.functional -------------------


class _Activation(Module):
    """An activation whose constructor's arguments are attributes, shown in its repr in this order."""

    def __init__(self, **options: Any):
        super().__init__()
        self._shown = tuple(options)
        for name, value in options.items():
            setattr(self, name, value)

    def extra_repr(self) -> str:
        """The options; ``inplace`` only where it is set."""
        shown = [(name, getattr(self, name)) for name in self._shown]
        return ", ".join(f"{name}={value!r}" for name, value in shown if name != "inplace" or value)


class ReLU(_Activation):
    """max(x, 0)."""

    def __init__(self, inplace: bool = False):
        super().__init__(inplace=inplace)

    def forward(self, input: Tensor) -> Tensor:
        """Elementwise."""
        return F.relu(input, self.inplace)


class LeakyReLU(_Activation):
    """x where x > 0, else negative_slope · x."""

    def __init__(self, negative_slope: float = 0.01, inplace: bool = False):
        super().__init__(negative_slope=negative_slope, inplace=inplace)

    def forward(self, input: Tensor) -> Tensor:
        """Elementwise."""
        return F.leaky_relu(input, self.negative_slope, self.inplace)


class ELU(_Activation):
    """x where x > 0, else alpha · (exp(x) - 1)."""

    def __init__(self, alpha: float = 1.0, inplace: bool = False):
        super().__init__(alpha=alpha, inplace=inplace)

    def forward(self, input: Tensor) -> Tensor:
        """Elementwise."""
        return F.elu(input, self.alpha, self.inplace)


class SELU(_Activation):
    """scale · elu(x, alpha) with the constants that make activations normalise themselves."""

    def __init__(self, inplace: bool = False):
        super().__init__(inplace=inplace)

    def forward(self, input: Tensor) -> Tensor:
        """Elementwise."""
        return F.selu(input, self.inplace)


class GELU(_Activation):
    """x Φ(x); ``approximate="tanh"`` takes the tanh form of Φ.

    Raises:
        ValueError: another ``approximate`` than "none" and "tanh".
    """

    def __init__(self, approximate: str = "none"):
        super().__init__(approximate=approximate)
        if approximate not in ("none", "tanh"):
            raise ValueError(f"GELU: expected approximate 'none' or 'tanh', got {approximate!r}")

    def forward(self, input: Tensor) -> Tensor:
        """Elementwise."""
        return F.gelu(input, approximate=self.approximate)


class SiLU(_Activation):
    """x · sigmoid(x)."""

    def __init__(self, inplace: bool = False):
        super().__init__(inplace=inplace)

    def forward(self, input: Tensor) -> Tensor:
        """Elementwise."""
        return F.silu(input, self.inplace)


class Mish(_Activation):
    """x · tanh(softplus(x))."""

    def __init__(self, inplace: bool = False):
        super().__init__(inplace=inplace)

    def forward(self, input: Tensor) -> Tensor:
        """Elementwise."""
        return F.mish(input, self.inplace)


class Sigmoid(_Activation):
    """1 / (1 + exp(-x))."""

    def forward(self, input: Tensor) -> Tensor:
        """Elementwise."""
        return F.sigmoid(input)


class Tanh(_Activation):
    """tanh(x)."""

    def forward(self, input: Tensor) -> Tensor:
        """Elementwise."""
        return F.tanh(input)


class Softplus(_Activation):
    """log(1 + exp(beta · x)) / beta, and x itself where beta · x > threshold."""

    def __init__(self, beta: float = 1.0, threshold: float = 20.0):
        super().__init__(beta=beta, threshold=threshold)

    def forward(self, input: Tensor) -> Tensor:
        """Elementwise."""
        return F.softplus(input, self.beta, self.threshold)


class LogSigmoid(_Activation):
    """log(sigmoid(x)), without overflow."""

    def forward(self, input: Tensor) -> Tensor:
        """Elementwise."""
        return F.logsigmoid(input)


class Softmax(_Activation):
    """exp(x) / Σ exp(x) along ``dim``; None picks the dimension as torch does."""

    def __init__(self, dim: int | None = None):
        super().__init__(dim=dim)

    def forward(self, input: Tensor) -> Tensor:
        """A tensor of the input's shape."""
        return F.softmax(input, self.dim, _stacklevel=5)


class LogSoftmax(_Activation):
    """log(softmax(x)) along ``dim``, in one kernel; None picks the dimension as torch does."""

    def __init__(self, dim: int | None = None):
        super().__init__(dim=dim)

    def forward(self, input: Tensor) -> Tensor:
        """A tensor of the input's shape."""
        return F.log_softmax(input, self.dim, _stacklevel=5)


# --- what a Linear can do in its own kernel ---------------------------------------------------------------------------

_KERNELS: dict[type, Callable[[Any], str | None]] = {
    ReLU: lambda module: "relu",
    LeakyReLU: lambda module: "leaky_relu" if module.negative_slope == 0.01 else None,
    ELU: lambda module: "elu" if module.alpha == 1.0 else None,
    SELU: lambda module: "selu",
    GELU: lambda module: "gelu" if module.approximate == "none" else "gelu_tanh",
    SiLU: lambda module: "silu",
    Mish: lambda module: "mish",
    Sigmoid: lambda module: "sigmoid",
    Tanh: lambda module: "tanh",
    Softplus: lambda module: "softplus" if (module.beta, module.threshold) == (1.0, 20.0) else None,
}


def can_take_activation(module: Module) -> bool:
    """Whether it is a Linear without an activation, whose own output nobody asks for."""
    return type(module) is Linear and module.activation is None and not module._forward_hooks


def activation_of(module: Module) -> str | None:
    """The activation of ``F.linear`` that a module computes, if that is all it does."""
    name = _KERNELS.get(type(module))
    return None if name is None or module._forward_hooks else name(module)
