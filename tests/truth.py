"""The fused operations spelled out in torch's own, unfused ones.

In float64 they are the truth that every backend is judged by; in the dtype under test they are torch's own error, which
ours is compared with. Nothing here comes from tilegrad.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS: dict[str | None, Callable[[Tensor], Tensor]] = {
    None: lambda z: z,
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "selu": F.selu,
    "gelu": F.gelu,
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
    "silu": F.silu,
    "mish": F.mish,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softplus": F.softplus,
    "relu2": lambda z: F.relu(z) ** 2,
    "swiglu": lambda z: F.silu(z.chunk(2, -1)[0]) * z.chunk(2, -1)[1],
    "geglu": lambda z: F.gelu(z.chunk(2, -1)[0]) * z.chunk(2, -1)[1],
}


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None) -> Tensor:
    return ACTIVATIONS[activation](F.linear(x, weight, bias))


def cross_entropy(
    logits: Tensor, target: Tensor, weight: Tensor | None = None, *, reduction: str = "mean", ignore_index: int = -100,
    label_smoothing: float = 0.0, z_loss: float = 0.0, softcap: float | None = None,
) -> Tensor:  # fmt: skip
    z = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    loss = F.cross_entropy(
        z, target, weight, reduction=reduction, ignore_index=ignore_index, label_smoothing=label_smoothing
    )
    if not z_loss:
        return loss
    square = z_loss * z.logsumexp(1 if z.ndim > 1 else 0) ** 2
    kept = torch.ones_like(square, dtype=torch.bool) if target.is_floating_point() else target != ignore_index
    square = torch.where(kept, square, 0.0)
    if reduction == "none":
        return loss + square
    return loss + (square.sum() if reduction == "sum" else square.sum() / kept.sum())


def linear_cross_entropy(
    x: Tensor, linear_weight: Tensor, target: Tensor, linear_bias: Tensor | None = None, **options: Any
) -> Tensor:
    logits = x @ linear_weight.reshape(-1, linear_weight.shape[-1]).mT
    if linear_bias is not None:
        logits = logits + linear_bias.reshape(-1)
    shape = (*x.shape[:-1], *linear_weight.shape[:-1])
    return cross_entropy(logits.reshape(shape), target, **options)
