"""Indexing, sorting and counting: each forward above its derivative, then the functions by torch's names."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from .elementwise import Broadcast, cast, dtype_of, sum_to
from .functions import full_like, maximum, minimum, same_device, where, zeros_like
from .graph import ArrayFunction, Variable
from .reductions import amax, amin, argmax, argmin, axis_of, numpy_names
from .storage import Array, address, byte_bounds, is_cupy, namespace, on_device_of, wide

Size = tuple[int, ...]


class Index(ArrayFunction):
    """x[key], basic or advanced; the derivative adds each gradient to where it came from, repeats included."""

    key: Any

    @staticmethod
    def forward(ctx: Any, x: Array, key: Any) -> Array:
        ctx.shape, ctx.key = x.shape, key
        return x[key]

    def name(self) -> str:
        """torch's name of what the last part of the index does."""
        keys = self.key if _is_basic(self.key) else ()
        kinds = [
            {int: "Select", slice: "Slice"}.get(type(k), "Unsqueeze") for k in keys if k not in (slice(None), Ellipsis)
        ]
        return f"{kinds[-1] if kinds else 'Index'}Backward0"

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return Scatter.apply(grad, ctx.key, ctx.shape), None


class Scatter(ArrayFunction):
    """Zeros of ``shape`` with ``grad`` added at ``key``."""

    @staticmethod
    def forward(ctx: Any, grad: Array, key: Any, shape: Size) -> Array:
        ctx.key = key
        xp = namespace(grad)
        out = xp.zeros(shape, grad.dtype)
        if _is_basic(key):
            out[key] = grad
        elif grad.dtype.kind == "f":
            (np.add.at if xp is np else xp.add.at)(out, key, grad)
        else:  # bfloat16 has no ufunc.at of its own
            total = xp.zeros(shape, np.float32)
            xp.add.at(total, key, wide(grad))
            out = total.astype(grad.dtype)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return Index.apply(grad, ctx.key), None, None


def _is_basic(key: Any) -> bool:
    keys = key if isinstance(key, tuple) else (key,)
    return all(k is None or k is Ellipsis or (isinstance(k, (int, slice)) and not isinstance(k, bool)) for k in keys)


def _zeroed(grad: Any, mask: Array) -> Any:
    """``grad`` with zeros where ``mask`` holds."""
    xp = namespace(grad)
    return xp.where(grad._make(mask) if isinstance(grad, Variable) else mask, xp.zeros_like(grad), grad)


class IndexPut(ArrayFunction):
    """``value`` written into ``x`` at ``key``, in place: the recorded form of ``x[key] = value``."""

    @staticmethod
    def forward(ctx: Any, x: Array, value: Array, key: Any) -> Array:
        ctx.key, ctx.shape = key, value.shape
        x[key] = value
        return x

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        mask = namespace(grad._array if isinstance(grad, Variable) else grad).zeros(grad.shape, bool)
        mask[ctx.key] = True
        given = Index.apply(grad, ctx.key)
        extra = len(ctx.shape) - len(given.shape)  # a value may have more dimensions, of size 1, in front
        return (
            _zeroed(grad, mask),
            sum_to(given, ctx.shape[extra:] if extra > 0 else ctx.shape).reshape(ctx.shape),
            None,
        )


class Region(ArrayFunction):
    """The view of ``x`` that lies where ``view`` does in its memory: how a view is tied to its base anew.

    Used after an in-place operation that was recorded: the base then has a history that its other views do not know.
    """

    @staticmethod
    def forward(ctx: Any, x: Array, view: Array) -> Array:
        ctx.x, ctx.view = x, view  # for their layout only
        return _view_at(x, address(view), view.shape, view.strides)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return RegionSpread.apply(grad, ctx.x, ctx.view), None


class RegionSpread(ArrayFunction):
    """Zeros laid out like ``x``, with ``part`` where ``view`` lies in it."""

    @staticmethod
    def forward(ctx: Any, part: Array, x: Array, view: Array) -> Array:
        ctx.x, ctx.view = x, view
        whole, place = _same_layout(x, view)
        place[...] = part
        return whole

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return RegionTake.apply(grad, ctx.x, ctx.view), None, None


class RegionTake(ArrayFunction):
    """The part of ``whole``, of any layout, that lies where ``view`` does in ``x``."""

    @staticmethod
    def forward(ctx: Any, whole: Array, x: Array, view: Array) -> Array:
        ctx.x, ctx.view = x, view
        copy, part = _same_layout(x, view)
        copy[...] = whole
        return part

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return RegionSpread.apply(grad, ctx.x, ctx.view), None, None


class RegionPut(ArrayFunction):
    """``x``, into which ``part`` was written where ``view`` lies: an in-place operation on a view, seen by its base."""

    @staticmethod
    def forward(ctx: Any, x: Array, part: Array, view: Array) -> Array:
        ctx.x, ctx.view = x, view
        return x

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        mask = RegionSpread.apply(namespace(ctx.x).ones_like(ctx.view), ctx.x, ctx.view) != 0
        return _zeroed(grad, mask), RegionTake.apply(grad, ctx.x, ctx.view), None


def _view_at(owner: Array, start: int, shape: Size, strides: Size) -> Array:
    """The elements at address ``start`` inside the memory of ``owner``; ``strides`` in bytes."""
    if is_cupy(owner):
        cp = namespace(owner)
        return cp.ndarray(shape, owner.dtype, owner.data + (start - address(owner)), strides)

    memory = SimpleNamespace(keeps=owner)
    memory.__array_interface__ = {
        "data": (start, False), "shape": shape, "strides": strides, "typestr": f"|V{owner.itemsize}", "version": 3
    }  # fmt: skip
    return np.asarray(memory).view(owner.dtype)


def _same_layout(x: Array, view: Array) -> tuple[Array, Array]:
    """Zeros laid out in memory like ``x``, and a view of those that lie where ``view`` lies in ``x``."""
    low, high = byte_bounds(x)
    memory = namespace(x).zeros((high - low) // x.itemsize, x.dtype)
    start = address(memory)
    whole = _view_at(memory, start + address(x) - low, x.shape, x.strides)
    return whole, _view_at(memory, start + address(view) - low, view.shape, view.strides)


class Gather(ArrayFunction):
    @staticmethod
    def forward(ctx: Any, x: Array, axis: int, index: Array) -> Array:
        ctx.shape, ctx.axis, ctx.index = x.shape, axis, index
        return x[_along(index, axis)]

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return Scatter.apply(grad, _along(ctx.index, ctx.axis), ctx.shape), None, None


def _along(index: Array, axis: int) -> tuple[Array, ...]:
    """The advanced index that takes ``index`` along ``axis`` and every position of it along the others."""
    xp = namespace(index)
    key = list(xp.ogrid[tuple(slice(n) for n in index.shape)]) if index.ndim > 1 else [xp.arange(index.shape[0])]
    key[axis] = index
    return tuple(key)


# --- the functions, by torch's names ----------------------------------------------------------------------------------


def nonzero(input: Any, *, as_tuple: bool = False) -> Any:
    """The indices of the non-zero elements: (count, ndim), or a vector for each dimension."""
    if as_tuple:
        return where(input)
    with on_device_of(input._array):
        return input._make(namespace(input._array).argwhere(input._array).astype(np.int64))


def _is_mask(k: Any) -> bool:
    return hasattr(k, "dtype") and k.dtype.kind == "b"


def keys_of(input: Any, key: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """An index as two: a basic one, which makes a view, and an advanced one of that view; () where there is none.

    As in torch, ints, slices, None and ... come first, then lists, tensors and masks (to NumPy an int is one of those).
    """
    xp = namespace(input._array)

    def one(k: Any) -> Any:
        if isinstance(k, Variable):
            if k._array.dtype.kind not in "iub":
                raise IndexError(f"tensors used as indices must be of an integer dtype or bool, got {k.dtype}")
            return int(k._array) if k._array.ndim == 0 and k._array.dtype.kind in "iu" else xp.asarray(k._array)
        if isinstance(k, (bool, list, range, np.ndarray)):
            return xp.asarray(k, np.int64 if isinstance(k, (list, range)) and not len(k) else None)
        if isinstance(k, np.integer):
            return int(k)
        if isinstance(k, slice):
            if k.step is not None and k.step <= 0:
                raise ValueError(f"slice step must be positive, got {k.step}; use flip")
            return slice(*(int(v) if v is not None else None for v in (k.start, k.stop, k.step)))
        return k

    parts = [one(k) for k in (key if isinstance(key, tuple) else (key,))]
    taken = [k.ndim if _is_mask(k) else k is not None and k is not Ellipsis for k in parts]
    if sum(taken) > input.ndim:
        raise IndexError(f"too many indices: got {sum(taken)} for a tensor of {input.ndim} dimensions")
    if not any(hasattr(k, "dtype") for k in parts):
        return (tuple(parts) if Ellipsis in parts else (*parts, Ellipsis)), ()  # with ..., never a scalar of NumPy
    basic: list[Any] = []
    advanced: list[Any] = []
    dim = 0
    for k, count in zip(parts, taken, strict=True):
        if k is Ellipsis:
            count = input.ndim - sum(taken)
            advanced += [slice(None)] * count
        elif _is_mask(k):
            if k.shape != input.shape[dim : dim + count]:
                raise IndexError(f"a mask of shape {list(k.shape)} was used on {list(input.shape[dim : dim + count])}")
            advanced += k.nonzero() if count and is_cupy(k) else [k]  # CuPy cannot add or write arrays at a mask
        elif hasattr(k, "dtype"):
            advanced.append(k)
        else:
            advanced += [] if isinstance(k, int) else [slice(None)]
        basic += [slice(None)] * count if k is Ellipsis or hasattr(k, "dtype") else [k]
        dim += count
    return (() if all(k == slice(None) for k in basic) else tuple(basic)), tuple(advanced)


def getitem(input: Any, key: Any) -> Any:
    """``input[key]``: a view for ints, slices, None and ..., a copy for lists, integer tensors and masks."""
    with on_device_of(input._array):
        basic, advanced = keys_of(input, key)
    if basic:
        input = Index.apply(input, basic)
    return Index.apply(input, advanced) if advanced else input


def index_select(input: Any, dim: int, index: Any) -> Any:
    """The slices of ``input`` along ``dim`` that ``index`` (1-d) names; IndexError if one is not there."""
    axis = axis_of("index_select", input.ndim, dim)
    _check_positions("index_select", input, index, 1)
    return getitem(input, (*[slice(None)] * axis, index))


def _check_positions(name: str, input: Any, index: Any, ndim: int) -> None:
    if index._array.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected an index of an integer dtype, got {index.dtype}")
    if index.ndim != ndim:
        raise ValueError(f"{name}: expected an index of {ndim} dimensions, got shape {list(index.shape)}")
    same_device(name, input, index)
    if isinstance(index._array, np.ndarray) and index._array.size and index._array.min() < 0:
        raise IndexError(f"{name}: expected no negative indices, got {index._array.min()}")


def gather(input: Any, dim: int, index: Any) -> Any:
    """out[i, j] = input[index[i, j], j] for dim 0, input[i, index[i, j]] for dim 1, and so on.

    Raises:
        IndexError: an index outside the size of ``dim``.
    """
    _check_positions("gather", input, index, input.ndim)
    return Gather.apply(input, axis_of("gather", input.ndim, dim), index._array)


def scatter(input: Any, dim: int, index: Any, src: Any) -> Any:
    """A copy of ``input`` with ``src`` (a tensor or a number) written where ``index`` points along ``dim``."""
    axis = axis_of("scatter", input.ndim, dim)
    _check_positions("scatter", input, index, input.ndim)
    if not isinstance(src, Variable):
        src = full_like(index, src, dtype=input.dtype)
    if src.ndim != index.ndim or any(n > m for n, m in zip(index.shape, src.shape, strict=True)):
        raise ValueError(
            f"scatter: expected a src at least as large as index, {list(index.shape)}, got {list(src.shape)}"
        )
    given = getitem(src, tuple(slice(n) for n in index.shape))
    with on_device_of(index._array):
        place = _along(index._array, axis)
    return IndexPut.apply(input.clone(), cast(given, dtype_of(input)), place)


def masked_fill(input: Any, mask: Any, value: Any) -> Any:
    """``value`` where ``mask`` holds, ``input`` elsewhere."""
    filled = where(mask, cast(value, dtype_of(input)) if isinstance(value, Variable) else value, input)
    if dtype_of(filled) != dtype_of(input):
        raise TypeError(f"masked_fill: {value!r} cannot be stored in {input.dtype}")
    return filled


def masked_select(input: Any, mask: Any) -> Any:
    """The elements where ``mask`` holds, in one dimension; the two broadcast."""
    shape = np.broadcast_shapes(input.shape, mask.shape)
    return getitem(Broadcast.apply(input, shape), Broadcast.apply(mask, shape))


class ValuesIndices(NamedTuple):
    """What ``sort``, ``topk``, ``max(dim)`` and ``min(dim)`` return, each as a class of its own name."""

    values: Any
    indices: Any

    def __repr__(self) -> str:
        return f"tilegrad.return_types.{type(self).__name__}(\nvalues={self.values},\nindices={self.indices})"


RETURN_TYPES: dict[str, Any] = {name: type(name, (ValuesIndices,), {}) for name in ("sort", "topk", "max", "min")}


def _order(input: Any, axis: int, descending: bool) -> Any:
    x = wide(input._array)
    xp = namespace(x)
    with on_device_of(x):
        if descending:  # stable, with equals in their order: the reversed order of the reversed
            order = xp.flip(x.shape[axis] - 1 - xp.argsort(xp.flip(x, axis), axis=axis, kind="stable"), axis)
        else:
            order = xp.argsort(x, axis=axis, kind="stable")
        return input._make(order.astype(np.int64))


@numpy_names
def sort(input: Any, dim: int = -1, descending: bool = False, stable: bool = True) -> ValuesIndices:
    """Sorted along ``dim``, and the indices that sort; equals keep their order, NaN is the largest."""
    if input.ndim == 0:
        return RETURN_TYPES["sort"](input.clone(), zeros_like(input, dtype=np.int64))
    axis = axis_of("sort", input.ndim, dim)
    order = _order(input, axis, descending)
    return RETURN_TYPES["sort"](gather(input, axis, order), order)


@numpy_names
def argsort(input: Any, dim: int = -1, descending: bool = False) -> Any:
    """The indices that sort along ``dim``."""
    return sort(input, dim, descending).indices


def topk(input: Any, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> ValuesIndices:
    """The ``k`` largest (or smallest) along ``dim`` in order, and their indices.

    Raises:
        ValueError: ``k`` larger than the size of ``dim``.
    """
    axis = axis_of("topk", input.ndim, dim)
    if not 0 <= k <= input.shape[axis]:
        raise ValueError(f"topk: expected k between 0 and {input.shape[axis]}, got {k}")
    order = getitem(_order(input, axis, largest), (*[slice(None)] * axis, slice(k)))
    return RETURN_TYPES["topk"](gather(input, axis, order), order)


@numpy_names
def max(input: Any, dim: Any = None, keepdim: bool = False) -> Any:
    """The largest of all; with ``dim``, ``(values, indices)`` along it; with a tensor, ``maximum`` of the two."""
    return _extreme("max", input, dim, keepdim, amax, argmax, maximum)


@numpy_names
def min(input: Any, dim: Any = None, keepdim: bool = False) -> Any:
    """The smallest of all; with ``dim``, ``(values, indices)`` along it; with a tensor, ``minimum`` of the two."""
    return _extreme("min", input, dim, keepdim, amin, argmin, minimum)


def _extreme(name: str, input: Any, dim: Any, keepdim: bool, over: Any, index_over: Any, between: Any) -> Any:
    if dim is None:
        return over(input)
    if isinstance(dim, Variable):
        return between(input, dim)
    index = index_over(input, dim, True)  # the value goes with one index, which gets all of the gradient
    if input.ndim == 0:
        return RETURN_TYPES[name](input.clone(), index)
    axis = axis_of(name, input.ndim, dim)
    values = gather(input, axis, index)
    if not keepdim:
        values, index = values.squeeze(axis), index.squeeze(axis)
    return RETURN_TYPES[name](values, index)


def one_hot(tensor: Any, num_classes: int = -1) -> Any:
    """(…) class indices → (…, num_classes) of zeros with a one at each index, int64.

    Raises:
        IndexError: a negative index, or one not below ``num_classes``.
    """
    x = tensor._array
    if x.dtype.kind not in "iu":
        raise TypeError(f"one_hot: expected an integer dtype, got {tensor.dtype}")
    if num_classes == -1 and not x.size:
        raise ValueError("one_hot: num_classes is needed for an empty tensor")
    with on_device_of(x):
        low, high = (int(x.min()), int(x.max())) if x.size else (0, -1)
        num_classes = high + 1 if num_classes == -1 else num_classes
        if low < 0 or high >= num_classes:
            raise IndexError(f"one_hot: expected indices in [0, {num_classes}), got {low} to {high}")
        return tensor._make((x[..., None] == namespace(x).arange(num_classes)).astype(np.int64))


def bincount(input: Any, weights: Any = None, minlength: int = 0) -> Any:
    """How often each value of a vector of non-negative integers occurs, or the sum of its ``weights``."""
    x = input._array
    if x.ndim != 1 or x.dtype.kind not in "iub":
        raise ValueError(f"bincount: expected a vector of integers, got shape {list(x.shape)} of {input.dtype}")
    with on_device_of(x):
        if x.size and int(x.min()) < 0:
            raise ValueError(f"bincount: expected non-negative integers, got {int(x.min())}")
        counted = namespace(x).bincount(x, None if weights is None else weights._array, minlength)
        return input._make(counted if weights is None else counted.astype(dtype_of(weights)))


def unique(input: Any, sorted: bool = True, return_inverse: bool = False, return_counts: bool = False) -> Any:
    """The distinct elements in order; on request also where each element went, and how often each occurs."""
    xp = namespace(input._array)
    with on_device_of(input._array):
        found = xp.unique(input._array, return_inverse=True, return_counts=True)
    values, inverse, counts = (input._make(a) for a in found)
    wanted = [values]
    if return_inverse:
        wanted.append(inverse.reshape(*input.shape))
    if return_counts:
        wanted.append(counts)
    return wanted[0] if len(wanted) == 1 else tuple(wanted)
