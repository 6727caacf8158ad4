"""Making tensors, by torch's names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from . import storage
from .rng import Generator, default_generator
from .shaping import shape_of
from .storage import Array, device_of, get_default_dtype, module_for, numpy_dtype, on_device_of
from .tensor import Tensor, wrap


def _finish(array: Array, requires_grad: bool) -> Tensor:
    made = wrap(array)
    return made.requires_grad_() if requires_grad else made


def _on(device: Any) -> Any:
    """The context that makes CuPy's new arrays appear on ``device``."""
    where = storage.device(device or "cpu")
    return on_device_of(np.empty(0)) if where.type == "cpu" else storage.cupy().cuda.Device(where.index)


def _host(data: Any) -> Any:
    """Nested sequences that may hold tensors, as something NumPy understands."""
    if isinstance(data, Tensor):
        return data.numpy(force=True)
    if isinstance(data, (list, tuple)) and any(isinstance(v, (Tensor, list, tuple)) for v in data):
        return [_host(v) for v in data]
    return data


def tensor(data: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """A tensor with a copy of ``data``: a number, nested sequences, an array or a tensor.

    Python floats become the default float (float32), ints int64, bools bool; arrays keep their dtype.

    Raises:
        ValueError: ragged sequences; TypeError: a dtype that tensors cannot have.
    """
    if isinstance(data, Tensor):
        data = data._array
    if storage.is_cupy(data):
        array = data.copy()
    else:
        known = isinstance(data, (np.ndarray, np.generic)) or hasattr(data, "__array_interface__")
        host = _host(data)
        try:
            array = np.array(host)
        except ValueError as error:
            raise ValueError(f"tensor: expected numbers in sequences of equal lengths: {error}") from None
        if not known and dtype is None:
            leaf = host
            while isinstance(leaf, (list, tuple)) and leaf:
                leaf = leaf[0]
            if (array.dtype == np.float64 and not isinstance(leaf, (np.ndarray, np.generic))) or array.size == 0:
                array = array.astype(get_default_dtype().dtype)
    array = array.astype(numpy_dtype(array.dtype if dtype is None else dtype), copy=False)
    if device is not None:
        array = storage.to_device(array, device)
    return _finish(array, requires_grad)


def as_tensor(data: Any, dtype: Any = None, device: Any = None) -> Tensor:
    """``tensor`` without a copy where none is needed: over a tensor's or an array's own memory."""
    if isinstance(data, np.ndarray) or storage.is_cupy(data):
        data = from_numpy(data)
    return data.to(dtype=dtype, device=device) if isinstance(data, Tensor) else tensor(data, dtype=dtype, device=device)


def from_numpy(array: Any) -> Tensor:
    """A tensor over a NumPy (or CuPy) array's memory; nothing is copied.

    Raises:
        TypeError: not an array, or one of a dtype that tensors cannot have.
    """
    if not isinstance(array, np.ndarray) and not storage.is_cupy(array):
        raise TypeError(f"from_numpy: expected a numpy.ndarray, got {type(array).__name__}")
    numpy_dtype(array.dtype)
    return wrap(array.view(np.ndarray) if isinstance(array, np.ndarray) else array)


def from_dlpack(x: Any) -> Tensor:
    """A tensor over the memory of any object with ``__dlpack__`` (torch, CuPy, JAX …); nothing is copied."""
    return wrap(storage.from_dlpack(x))


def _filled(size: tuple[Any, ...], value: Any, dtype: Any, device: Any, requires_grad: bool) -> Tensor:
    with _on(device):
        dt = get_default_dtype().dtype if dtype is None else numpy_dtype(dtype)
        return _finish(module_for(device).full(shape_of(*size), value, dt), requires_grad)


def zeros(*size: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """Zeros of a shape: ``zeros(2, 3)`` or ``zeros((2, 3))``."""
    return _filled(size, 0, dtype, device, requires_grad)


def ones(*size: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """Ones of a shape."""
    return _filled(size, 1, dtype, device, requires_grad)


def full(size: Any, fill_value: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """``fill_value`` in a shape; its Python type decides the dtype unless one is given."""
    if dtype is None:
        dtype = get_default_dtype() if isinstance(fill_value, float) else type(fill_value)
    return _filled((size,) if isinstance(size, int) else (tuple(size),), fill_value, dtype, device, requires_grad)


def empty(*size: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """Memory of a shape, whatever it holds."""
    with _on(device):
        dt = get_default_dtype().dtype if dtype is None else numpy_dtype(dtype)
        return _finish(module_for(device).empty(shape_of(*size), dt), requires_grad)


def empty_like(input: Tensor, *, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """Memory of the shape of ``input``, and of its dtype and device unless others are given."""
    return empty(input.shape, dtype=dtype or input.dtype, device=device or input.device, requires_grad=requires_grad)


def arange(
    start: float = 0,
    end: float | None = None,
    step: float = 1,
    *,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """start, start + step, … below ``end``; int64 if all three are ints, else the default float.

    Raises:
        ValueError: a step of 0, or one that leads away from ``end``.
    """
    if end is None:
        start, end = 0, start
    if step == 0 or (end - start) / step < 0:
        raise ValueError(f"arange: step {step} does not lead from {start} to {end}")
    if dtype is None:
        whole = all(isinstance(v, (int, np.integer)) for v in (start, end, step))
        dtype = storage.int64 if whole else get_default_dtype()
    with _on(device):
        return _finish(module_for(device).arange(start, end, step).astype(numpy_dtype(dtype)), requires_grad)


def linspace(
    start: float, end: float, steps: int, *, dtype: Any = None, device: Any = None, requires_grad: bool = False
) -> Tensor:
    """``steps`` values evenly from ``start`` to ``end``, both included."""
    with _on(device):
        dt = get_default_dtype().dtype if dtype is None else numpy_dtype(dtype)
        return _finish(module_for(device).linspace(start, end, steps).astype(dt), requires_grad)


def eye(n: int, m: int | None = None, *, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """The identity matrix (n, m)."""
    with _on(device):
        dt = get_default_dtype().dtype if dtype is None else numpy_dtype(dtype)
        return _finish(module_for(device).eye(n, m, dtype=dt), requires_grad)


def rand(
    *size: Any, generator: Generator | None = None, dtype: Any = None, device: Any = None, requires_grad: bool = False
) -> Tensor:
    """Uniform numbers from [0, 1)."""
    return _filled_by("uniform", shape_of(*size), (0.0, 1.0), generator, dtype, device, requires_grad)


def randn(
    *size: Any, generator: Generator | None = None, dtype: Any = None, device: Any = None, requires_grad: bool = False
) -> Tensor:
    """Normal numbers of mean 0 and standard deviation 1."""
    return _filled_by("normal", shape_of(*size), (0.0, 1.0), generator, dtype, device, requires_grad)


def normal(mean: Any, std: Any, size: Sequence[int] | None = None, *, generator: Generator | None = None) -> Tensor:
    """Normal numbers; ``mean`` and ``std`` are numbers with a ``size``, or tensors that give the shape."""
    if size is None:
        size = np.broadcast_shapes(*(v.shape for v in (mean, std) if isinstance(v, Tensor)))
    return randn(*size, generator=generator) * std + mean


def rand_like(input: Tensor, *, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """Uniform numbers in the shape of ``input``."""
    return rand(input.shape, dtype=dtype or input.dtype, device=device or input.device, requires_grad=requires_grad)


def randn_like(input: Tensor, *, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """Normal numbers in the shape of ``input``."""
    return randn(input.shape, dtype=dtype or input.dtype, device=device or input.device, requires_grad=requires_grad)


def randint(
    low: int, high: Any, size: Any = None, *, generator: Generator | None = None, dtype: Any = None, device: Any = None,
    requires_grad: bool = False,
) -> Tensor:  # fmt: skip
    """Integers from [low, high): ``randint(high, size)`` or ``randint(low, high, size)``.

    Raises:
        ValueError: an empty interval.
    """
    if size is None:
        low, high, size = 0, low, high
    if low >= high:
        raise ValueError(f"randint: expected low < high, got [{low}, {high})")
    kind = storage.int64 if dtype is None else dtype
    return _filled_by(
        "integers",
        shape_of(*([size] if isinstance(size, int) else size)),
        (low, high),
        generator,
        kind,
        device,
        requires_grad,
    )


def randperm(n: int, *, generator: Generator | None = None, dtype: Any = None, device: Any = None) -> Tensor:
    """0 … n−1 in a random order, int64."""
    order = (generator or default_generator).permutation(n, device or "cpu")
    return wrap(order.astype(numpy_dtype(storage.int64 if dtype is None else dtype), copy=False))


def bernoulli(input: Tensor, *, generator: Generator | None = None) -> Tensor:
    """1 with the probability that stands in ``input``, else 0."""
    drawn = (generator or default_generator).uniform(input.shape, 0.0, 1.0, device_of(input._array))
    with on_device_of(input._array):
        return wrap((drawn < input._array).astype(input._array.dtype))


def multinomial(
    input: Tensor, num_samples: int, replacement: bool = False, *, generator: Generator | None = None
) -> Tensor:
    """Indices drawn with the (unnormalised) probabilities in each row of ``input``, (C) or (N, C).

    Raises:
        ValueError: negative probabilities, or fewer non-zero ones than samples without replacement.
    """
    p = input.numpy(force=True).astype(np.float64)
    possible = (p > 0).sum(-1).min() if p.size else 0
    if (p < 0).any() or possible < (1 if replacement else num_samples):
        raise ValueError(
            "multinomial: expected non-negative probabilities, and as many above zero as samples are drawn"
        )
    source = generator or default_generator
    if replacement:
        edges = np.cumsum(p, -1)[..., None, :]
        drawn = source.uniform((*p.shape[:-1], num_samples, 1), 0.0, 1.0) * edges[..., -1:]
        picked = (drawn >= edges).sum(-1)
    else:  # Efraimidis & Spirakis 2006: the largest log(u)/p are a sample without replacement
        with np.errstate(divide="ignore"):
            keys = np.log(source.uniform(p.shape, 0.0, 1.0)) / p
        picked = np.argsort(-keys, -1)[..., :num_samples]
    return wrap(storage.to_device(picked.astype(np.int64), input.device))


def _filled_by(
    draw: str, shape: tuple[int, ...], bounds: tuple[Any, Any], generator: Generator | None, dtype: Any, device: Any,
    requires_grad: bool,
) -> Tensor:  # fmt: skip
    dt = get_default_dtype().dtype if dtype is None else numpy_dtype(dtype)
    with _on(device):
        values = getattr(generator or default_generator, draw)(shape, *bounds, device or "cpu")
        return _finish(values.astype(dt, copy=False), requires_grad)
