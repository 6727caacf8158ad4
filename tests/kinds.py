"""The kinds of array that the library takes, and the layouts in which they come: what the contract suite runs over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import torch
from hypothesis import strategies as st

import tilegrad as tg

DTYPES = {
    "float64": np.float64,
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
}
KINDS = ("Tensor", "torch", "numpy")
LAYOUTS = ("contiguous", "transposed", "sliced", "expanded")


def laid_out(values: np.ndarray, layout: str) -> np.ndarray:
    """The values in another memory layout (expanded: the first row stands for all of them)."""
    values = np.asarray(values)
    if layout == "transposed":  # column-major
        return np.array(values, order="F")
    if layout == "sliced":  # every second element of something larger, at an offset, in every dimension
        room = np.full([2 * n + 3 for n in values.shape], -77, values.dtype)
        view = room[(*(slice(3, 3 + 2 * n, 2) for n in values.shape), ...)]
        view[...] = values
        return view
    if layout == "expanded" and values.ndim:
        first = np.ascontiguousarray(values[:1])
        strides = (0, *first.strides[1:])
        return np.lib.stride_tricks.as_strided(first, values.shape, strides) if len(values) else values
    return values


def placed(
    data: st.DataObject, shape: tuple[int, ...], output: bool, memory_of: Callable[[int], np.ndarray]
) -> np.ndarray:
    """An array anywhere in memory: dimensions in any order, with gaps, some backwards; those of inputs also repeat.
    ``memory_of`` makes the memory of so many elements."""
    strides, room = [0] * len(shape), data.draw(st.sampled_from([1, 1, 1, 2]))
    for i in data.draw(st.permutations(range(len(shape)))):
        if output or data.draw(st.integers(0, 5)):
            strides[i] = room
            room = room * shape[i] + data.draw(st.sampled_from([0, 0, 0, 1, 8]))
    strides = [-s if data.draw(st.integers(0, 5)) == 0 else s for s in strides]
    start = data.draw(st.sampled_from([0, 0, 0, 1, 8]))
    start -= sum(s * (n - 1) for s, n in zip(strides, shape, strict=True) if s < 0)
    memory = memory_of(start + room + 9)
    return np.lib.stride_tricks.as_strided(memory[start:], shape, [s * memory.itemsize for s in strides])


def as_torch(x: np.ndarray) -> torch.Tensor:
    """A torch tensor over a NumPy array's memory, in its layout; bfloat16 too."""
    if x.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(x)


def make(kind: str, x: np.ndarray | None, requires_grad: bool = False) -> Any:
    """An array of a kind over the memory of ``x``; None stays None."""
    if x is None or kind == "numpy":
        return x
    made = tg.from_numpy(x) if kind == "Tensor" else as_torch(x)
    return made.requires_grad_(requires_grad)


def values(x: Any) -> np.ndarray:
    """Any kind of array as float64 (or integers) in NumPy."""
    if isinstance(x, torch.Tensor):
        x = x.detach()
        return x.double().numpy() if x.is_floating_point() else x.numpy()
    x = x.numpy(force=True) if isinstance(x, tg.Tensor) else np.asarray(x)
    return x if x.dtype.kind in "iub" else x.astype(np.float64)


def gradients(kind: str, output: Any, upstream: np.ndarray, leaves: list[Any]) -> list[np.ndarray | None]:
    """The gradients of the leaves that want one, for an upstream gradient; None for the others."""
    if kind == "numpy":
        return [None] * len(leaves)
    output.backward(make(kind, np.asarray(upstream).astype(str(output.dtype).rpartition(".")[2])))
    return [None if leaf is None or leaf.grad is None else values(leaf.grad) for leaf in leaves]
