"""Shapes, devices, joining and splitting: each forward above its derivative, then the functions by torch's names."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from . import storage
from .elementwise import Broadcast, cast, dtype_of
from .functions import result_dtype, same_device, where
from .graph import ArrayFunction
from .indexing import Index
from .reductions import axes_of, axis_of, numpy_names
from .storage import Array, namespace, on_device_of

Size = tuple[int, ...]


class Reshape(ArrayFunction):
    torch_name = "ViewBackward0"

    @staticmethod
    def forward(ctx: Any, x: Array, shape: Size) -> Array:
        ctx.shape = x.shape
        return x.reshape(shape)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return grad.reshape(ctx.shape), None


class Permute(ArrayFunction):
    @staticmethod
    def forward(ctx: Any, x: Array, axes: Size) -> Array:
        ctx.axes = axes
        return x.transpose(axes)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        inverse = tuple(ctx.axes.index(i) for i in range(len(ctx.axes)))
        return Permute.apply(grad, inverse), None


class Transpose(Permute):
    """Two dimensions exchanged."""


class Clone(ArrayFunction):
    @staticmethod
    def forward(ctx: Any, x: Array) -> Array:
        return x.copy()

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return grad


class ToDevice(ArrayFunction):
    @staticmethod
    def forward(ctx: Any, x: Array, where: Any) -> Array:
        ctx.was = storage.device_of(x)
        return storage.to_device(x, where)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return ToDevice.apply(grad, ctx.was), None


class Join(ArrayFunction):
    """Arrays one after the other along ``axis``."""

    torch_name = "CatBackward0"

    @staticmethod
    def forward(ctx: Any, axis: int, *parts: Array) -> Array:
        ctx.axis, ctx.sizes = axis, [p.shape[axis] for p in parts]
        return namespace(parts[0]).concatenate(parts, axis)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        pieces, start = [], 0
        for n in ctx.sizes:
            pieces.append(Index.apply(grad, (*[slice(None)] * ctx.axis, slice(start, start + n), Ellipsis)))
            start += n
        return None, *pieces


# --- the functions, by torch's names ----------------------------------------------------------------------------------


def shape_of(*shape: Any) -> Size:
    """A shape from ``f(2, 3)`` or ``f((2, 3))``."""
    if len(shape) == 1 and isinstance(shape[0], (tuple, list)):
        shape = tuple(shape[0])
    if not all(isinstance(n, (int, np.integer)) for n in shape):
        raise TypeError(f"expected a shape of ints, got {shape}")
    return tuple(int(n) for n in shape)


def reshape(input: Any, *shape: Any) -> Any:
    """The same elements in another shape (one size may be −1); a view where the strides allow it.

    Raises:
        ValueError: the shape holds another number of elements.
    """
    wanted = shape_of(*shape)
    known = math.prod(n for n in wanted if n != -1)
    count = input._array.size
    if wanted.count(-1) > 1 or (known != count if -1 not in wanted else known == 0 or count % known):
        raise ValueError(f"reshape: cannot give {count} elements of shape {list(input.shape)} the shape {list(wanted)}")
    return Reshape.apply(input, wanted)


def view(input: Any, *shape: Any) -> Any:
    """``reshape`` that never copies: ValueError where the strides do not allow a view."""
    out = reshape(input, *shape)
    if out._base is None and out._array.size:
        raise ValueError(f"view: shape {list(out.shape)} needs a copy of this tensor's strided memory; use reshape")
    return out


def flatten(input: Any, start_dim: int = 0, end_dim: int = -1) -> Any:
    """The dimensions from ``start_dim`` to ``end_dim`` made one."""
    if input.ndim == 0:
        return input.reshape(1)
    first, last = axis_of("flatten", input.ndim, start_dim), axis_of("flatten", input.ndim, end_dim)
    if first > last:
        raise ValueError(f"flatten: start_dim {start_dim} comes after end_dim {end_dim}")
    size = math.prod(input.shape[first : last + 1])
    return reshape(input, *input.shape[:first], size, *input.shape[last + 1 :])


def unflatten(input: Any, dim: int, sizes: Sequence[int]) -> Any:
    """Dimension ``dim`` unfolded into ``sizes`` (one may be −1)."""
    axis = axis_of("unflatten", input.ndim, dim)
    sizes = list(sizes)
    if -1 in sizes:
        sizes[sizes.index(-1)] = input.shape[axis] // max(1, -math.prod(sizes))
    return reshape(input, *input.shape[:axis], *sizes, *input.shape[axis + 1 :])


def permute(input: Any, *dims: Any) -> Any:
    """The dimensions in another order (a view)."""
    order = axes_of("permute", input.ndim, shape_of(*dims)) if input.ndim else ()
    if len(order) != input.ndim:
        raise ValueError(f"permute: expected {input.ndim} dimensions, got {list(dims)}")
    return Permute.apply(input, order)


def transpose(input: Any, dim0: int, dim1: int) -> Any:
    """Two dimensions exchanged (a view)."""
    a, b = axis_of("transpose", input.ndim, dim0), axis_of("transpose", input.ndim, dim1)
    order = list(range(input.ndim))
    if order:
        order[a], order[b] = order[b], order[a]
    return Transpose.apply(input, tuple(order))


def swapaxes(input: Any, axis0: int, axis1: int) -> Any:
    """``transpose`` by its NumPy name."""
    return transpose(input, axis0, axis1)


def movedim(input: Any, source: int, destination: int) -> Any:
    """One dimension moved to another place (a view)."""
    axis = axis_of("movedim", input.ndim, source)
    order = [i for i in range(input.ndim) if i != axis]
    order.insert(axis_of("movedim", input.ndim, destination), axis)
    return Permute.apply(input, tuple(order))


def t(input: Any) -> Any:
    """The transpose of a matrix; vectors and scalars are themselves."""
    if input.ndim > 2:
        raise ValueError(f"t: expected at most 2 dimensions, got {input.ndim}")
    return transpose(input, 0, 1) if input.ndim == 2 else Reshape.apply(input, input.shape)


def squeeze(input: Any, dim: int | tuple[int, ...] | None = None) -> Any:
    """Dimensions of size 1 dropped: all of them, or those in ``dim`` that are."""
    axes = axes_of("squeeze", input.ndim, dim) if input.ndim else ()
    return Reshape.apply(input, tuple(n for i, n in enumerate(input.shape) if not (i in axes and n == 1)))


def unsqueeze(input: Any, dim: int) -> Any:
    """A new dimension of size 1 at ``dim``."""
    axis = axis_of("unsqueeze", input.ndim + 1, dim)
    return Index.apply(input, (*[slice(None)] * axis, None, Ellipsis))


def broadcast_to(input: Any, shape: Sequence[int]) -> Any:
    """``expand`` by its NumPy name."""
    return expand(input, *shape)


def expand(input: Any, *sizes: Any) -> Any:
    """Dimensions of size 1 repeated, without a copy; −1 keeps a size.

    Raises:
        ValueError: a size that is neither the tensor's nor a repetition of 1.
    """
    wanted = shape_of(*sizes)
    lead = len(wanted) - input.ndim
    full = tuple(input.shape[i - lead] if n == -1 and i >= lead else n for i, n in enumerate(wanted))
    if lead < 0 or any(n < 0 or (i >= lead and input.shape[i - lead] not in (1, n)) for i, n in enumerate(full)):
        raise ValueError(f"expand: shape {list(input.shape)} cannot be expanded to {list(wanted)}")
    return Broadcast.apply(input, full)


def repeat(input: Any, *sizes: Any) -> Any:
    """The tensor repeated ``sizes`` times along each dimension (a copy)."""
    times = shape_of(*sizes)
    if len(times) < input.ndim:
        raise ValueError(f"repeat: expected at least {input.ndim} sizes, got {list(times)}")
    x = reshape(input, *[1] * (len(times) - input.ndim), *input.shape)
    inner = x.shape
    x = reshape(x, *[k for n in inner for k in (1, n)])
    x = expand(x, *[k for r, n in zip(times, inner, strict=True) for k in (r, n)])
    x = reshape(x, *[r * n for r, n in zip(times, inner, strict=True)])
    return x if x._base is None else clone(x)


def clone(input: Any) -> Any:
    """A copy with its own memory; gradients flow through."""
    return Clone.apply(input)


def to_device(input: Any, device: Any) -> Any:
    """The tensor on another device; itself if it is there already."""
    where = storage.device(device)
    here = input.device
    if where.type == here.type and where.index in (None, here.index):
        return input
    return ToDevice.apply(input, where)


@numpy_names
def cat(tensors: Sequence[Any], dim: int = 0) -> Any:
    """Tensors joined along ``dim``; their other sizes must agree.

    Raises:
        ValueError: no tensors, or sizes that do not agree.
    """
    parts = [p for p in tensors if p.shape != (0,)] or list(tensors)  # torch lets an empty vector join anything
    if not parts:
        raise ValueError("cat: expected at least one tensor, got none")
    same_device("cat", *parts)
    axis = axis_of("cat", parts[0].ndim, dim)
    for p in parts[1:]:
        if p.ndim != parts[0].ndim or any(
            a != b for i, (a, b) in enumerate(zip(p.shape, parts[0].shape, strict=True)) if i != axis
        ):
            raise ValueError(f"cat: shapes {list(parts[0].shape)} and {list(p.shape)} differ outside dim {axis}")
    dt = dtype_of(parts[0])
    for p in parts[1:]:
        dt = result_dtype(parts[0]._make(np.empty(1, dt)), p) if dtype_of(p) != dt else dt
    return Join.apply(axis, *(cast(p, dt) for p in parts))


@numpy_names
def stack(tensors: Sequence[Any], dim: int = 0) -> Any:
    """Tensors of one shape joined along a new ``dim``."""
    parts = list(tensors)
    if not parts:
        raise ValueError("stack: expected at least one tensor, got none")
    if any(p.shape != parts[0].shape for p in parts):
        raise ValueError(f"stack: expected tensors of one shape, got {[list(p.shape) for p in parts]}")
    return cat([unsqueeze(p, dim) for p in parts], dim)


def vstack(tensors: Sequence[Any]) -> Any:
    """Rows under each other: joined along the first dimension, vectors as rows."""
    return cat([reshape(t, 1, -1) if t.ndim < 2 else t for t in tensors], 0)


def hstack(tensors: Sequence[Any]) -> Any:
    """Side by side: joined along the second dimension, vectors along their only one."""
    parts = [reshape(t, 1) if t.ndim == 0 else t for t in tensors]
    return cat(parts, 0 if parts[0].ndim == 1 else 1)


def meshgrid(*tensors: Any, indexing: str = "ij") -> tuple[Any, ...]:
    """Vectors → a grid for each, which varies along its own dimension: the first by rows ("ij") or by columns ("xy").

    Raises:
        ValueError: another ``indexing``.
    """
    if indexing not in ("ij", "xy"):
        raise ValueError(f"meshgrid: expected indexing 'ij' or 'xy', got {indexing!r}")
    vectors = list(tensors[0]) if len(tensors) == 1 and isinstance(tensors[0], (tuple, list)) else list(tensors)
    sizes = [v.numel() for v in vectors]
    alone = [[-1 if k == i else 1 for k in range(len(sizes))] for i in range(len(sizes))]
    grids = [expand(reshape(v, *shape), *sizes) for v, shape in zip(vectors, alone, strict=True)]
    return tuple(transpose(g, 0, 1) if indexing == "xy" and len(sizes) > 1 else g for g in grids)


def split(input: Any, split_size: int | Sequence[int], dim: int = 0) -> tuple[Any, ...]:
    """Views of ``split_size`` along ``dim`` (the last may be smaller), or of the sizes listed."""
    axis = axis_of("split", input.ndim, dim)
    total = input.shape[axis]
    if isinstance(split_size, int):
        if split_size < 1:
            raise ValueError(f"split: expected a split_size of at least 1, got {split_size}")
        sizes = [min(split_size, total - i) for i in range(0, total, split_size)] or [0]
    else:
        sizes = list(split_size)
        if sum(sizes) != total:
            raise ValueError(f"split: sizes {sizes} add up to {sum(sizes)}, expected {total}")
    ends = np.cumsum(sizes)
    return tuple(
        Index.apply(input, (*[slice(None)] * axis, slice(int(e) - n, int(e)), Ellipsis))
        for n, e in zip(sizes, ends, strict=True)
    )


def chunk(input: Any, chunks: int, dim: int = 0) -> tuple[Any, ...]:
    """At most ``chunks`` views of equal size along ``dim`` (the last may be smaller)."""
    size = input.shape[axis_of("chunk", input.ndim, dim)]
    if chunks < 1:
        raise ValueError(f"chunk: expected at least 1 chunk, got {chunks}")
    return split(input, max(1, -(-size // chunks)), dim)


def unbind(input: Any, dim: int = 0) -> tuple[Any, ...]:
    """The slices along ``dim``, each a view without it."""
    axis = axis_of("unbind", input.ndim, dim)
    return tuple(Index.apply(input, (*[slice(None)] * axis, i, Ellipsis)) for i in range(input.shape[axis]))


def tril(input: Any, diagonal: int = 0) -> Any:
    """The matrix with what lies above the diagonal set to 0."""
    with on_device_of(input._array):
        kept = namespace(input._array).tri(*input.shape[-2:], diagonal, dtype=bool)
    return where(input._make(kept), input, False)


def triu(input: Any, diagonal: int = 0) -> Any:
    """The matrix with what lies below the diagonal set to 0."""
    with on_device_of(input._array):
        dropped = namespace(input._array).tri(*input.shape[-2:], diagonal - 1, dtype=bool)
    return where(input._make(dropped), False, input)
