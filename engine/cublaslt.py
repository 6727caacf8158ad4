"""Linear layers on NVIDIA's cuBLASLt: products of matrices that end in a bias, an activation or a bias's gradient.

The library is looked for when it is first asked for. ``takes_linear`` and ``takes_linear_backward`` say, by rules
alone, whether a call can go there: activations, dtypes, strides and alignments. Arrays are CuPy's or torch's, and stay
where they are; the workspace is listed by the companions and handed in. Nothing here allocates or waits.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import _C
from .cuda_views import CODES, SIZES, View, Workspace, buffer_of, given, place_of, view

# What its epilogues apply, by their names there; its GELU is the approximation by tanh.
ACTIVATIONS = {None: "", "relu": "relu", "gelu_tanh": "gelu"}

ALIGNMENT = 256  # bytes, of the workspace
_DTYPES = {code: name for name, code in CODES.items() if name in ("float16", "bfloat16", "float32", "float64")}
_SHORT = (CODES["float16"], CODES["bfloat16"])

Call = dict[str, Any]  # arguments of _C.cublaslt_matmul


# --- the library ------------------------------------------------------------------------------------------------------


def _files() -> Iterator[str]:
    """Those of NVIDIA's wheels, the newest first. What is loaded already and the loader's path come before them."""
    wheels = importlib.util.find_spec("nvidia")
    for major in (13, 12):
        for folder in wheels.submodule_search_locations or () if wheels else ():
            yield from map(str, sorted(Path(folder).glob(f"*/lib/libcublasLt.so.{major}")))


@functools.cache
def _loaded() -> tuple[int, str] | str:
    """Version and file; or why there is none, in a sentence."""
    try:
        return _C.cublaslt_load(list(_files()))
    except RuntimeError as error:
        return str(error)


@functools.cache
def why_not(device: int) -> str | None:
    """Why nothing can run on a device, in a sentence; None if it can."""
    found = _loaded()
    if isinstance(found, str):
        return found
    try:
        _C.cublaslt_workspace_bytes(device)
    except RuntimeError as error:  # the driver is too old, or there is no such device
        return str(error)
    return None


def describe() -> tuple[bool, str]:
    """Whether there is one, and its version and file, or why there is none. Needs no GPU."""
    found = _loaded()
    if isinstance(found, str):
        return False, found
    version, file = found
    return True, f"{version // 10000}.{version // 100 % 100}.{version % 100} ({file})"


# --- a product --------------------------------------------------------------------------------------------------------


def call_of(
    a: View, b: View, out: View, *, bias: View | None = None, activation: str | None = None, pre: View | None = None,
    sums: View | None = None, tf32: bool = False,
) -> Call | None:  # fmt: skip
    """out (rows, columns) = activation(a (rows, depth) · b (columns, depth)ᵀ + bias (columns)), if it can be had.

    ``pre`` keeps the argument of GELU. ``sums`` (rows) gets the sums over ``depth`` of ``a``, if all else is left out.
    """
    if activation not in ACTIVATIONS or a.dtype not in _DTYPES or out.dtype != a.dtype:
        return None
    if activation == "gelu_tanh" and a.dtype not in _SHORT:  # nobody says how exact its tanh is: enough for 16 bits
        return None
    left, right, into = _stored(a), _stored(b.turned), _stored(out)
    kept = None if pre is None else _stored(pre)
    if left is None or right is None or into is None or into[2]:
        return None
    if pre is not None and (kept is None or kept[2] or activation != "gelu_tanh"):
        return None
    vector = bias if sums is None else sums
    if vector is not None and (vector.dtype != a.dtype or (vector.size > 1 and vector.strides[0] != SIZES[a.dtype])):
        return None
    ends = (ACTIVATIONS[activation], "aux" if pre is not None else "", "bias" if bias is not None else "")
    call: Call = {
        "shape": (*out.shape, a.shape[1]),
        "dtype": _DTYPES[a.dtype],
        "a": left,
        "b": right,
        "d": into[:2],
        "epilogue": "bgrad_a" if sums is not None else "_".join(filter(None, ends)) or "none",
        "bias": 0 if vector is None else vector.address,
        "aux": (0, 0) if kept is None else kept[:2],
        "tf32": tf32 and _DTYPES[a.dtype] == "float32",
    }
    return call if _C.cublaslt_takes(**call) else None


def _stored(x: View) -> tuple[int, int, bool] | None:
    """Where a matrix is, the elements from one row there to the next, and whether its rows there are its columns."""
    size = SIZES[x.dtype]
    for stored, transposed in ((x, False), (x.turned, True)):
        (rows, columns), (step, along) = stored.shape, stored.strides
        if columns > 1 and along != size:
            continue
        if rows == 1:
            return x.address, columns, transposed
        if step % size == 0:  # that it is long enough, is for the extension to say
            return x.address, step // size, transposed
    return None


def run(call: Call, workspace: dict[str, Any] | None, place: tuple[int, int]) -> None:
    """Queue it on its stream.

    Raises:
        NotImplementedError: the library has no kernel for such a product; nothing was queued.
    """
    device, stream = place
    _C.cublaslt_matmul(**call, workspace=_room(workspace), device=device, stream=stream)


def workspace_of(device: int) -> Workspace:
    """The buffer that products on a device share."""
    return {"cublaslt": buffer_of(_C.cublaslt_workspace_bytes(device) + ALIGNMENT)}


def _room(workspace: dict[str, Any] | None) -> tuple[int, int]:
    """The workspace's address and bytes."""
    if not workspace or "cublaslt" not in workspace:
        return 0, 0
    whole = given(workspace["cublaslt"])
    skipped = -whole.address % ALIGNMENT
    return whole.address + skipped, whole.size * SIZES[whole.dtype] - ALIGNMENT


# --- linear -----------------------------------------------------------------------------------------------------------


def takes_linear(
    x: Any, weight: Any, bias: Any, activation: str | None, *, out: Any, pre: Any, tf32: bool = False
) -> bool:
    """Whether this call can go to the library."""
    return can_run(x) and _forward(x, weight, bias, activation, out, pre, tf32) is not None


def linear(
    x: Any, weight: Any, bias: Any, activation: str | None, *, out: Any, pre: Any, tf32: bool = False,
    workspace: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    """As in reference.py: one product, of a call that is taken."""
    call = _forward(x, weight, bias, activation, out, pre, tf32)
    assert call is not None
    run(call, workspace, place_of(x, False))


def linear_workspace(
    x: Any, weight: Any, bias: Any, activation: str | None, *, out: Any, pre: Any, tf32: bool = False
) -> Workspace:
    """The shape and dtype of each buffer."""
    return workspace_of(place_of(x, False)[0])


def _forward(x: Any, weight: Any, bias: Any, activation: str | None, out: Any, pre: Any, tf32: bool) -> Call | None:
    a, y, kept = given(x).joined, given(out).joined, None if pre is None else given(pre).joined
    if a is None or y is None or (pre is not None and kept is None):
        return None
    return call_of(a, given(weight), y, bias=view(bias), activation=activation, pre=kept, tf32=tf32)


def takes_linear_backward(
    grad: Any, x: Any, weight: Any, saved: Any, activation: str | None, *, grad_input: Any, grad_weight: Any,
    grad_bias: Any, tf32: bool = False,
) -> bool:  # fmt: skip
    """Whether this call can go to the library: not with an activation, whose derivative belongs to another layer's
    product there."""
    if activation is not None or not can_run(grad):
        return False
    return _backward(grad, x, weight, grad_input, grad_weight, grad_bias, tf32) is not None


def linear_backward(
    grad: Any, x: Any, weight: Any, saved: Any, activation: str | None, *, grad_input: Any, grad_weight: Any,
    grad_bias: Any, tf32: bool = False, workspace: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    """As in reference.py: a product for each of two gradients, and the bias's in the end of the weight's."""
    calls, place = _backward(grad, x, weight, grad_input, grad_weight, grad_bias, tf32), place_of(grad, False)
    assert calls is not None
    for call in calls:
        run(call, workspace, place)


def linear_backward_workspace(
    grad: Any, x: Any, weight: Any, saved: Any, activation: str | None, *, grad_input: Any, grad_weight: Any,
    grad_bias: Any, tf32: bool = False,
) -> Workspace:  # fmt: skip
    """The shape and dtype of each buffer."""
    return workspace_of(place_of(grad, False)[0])


def _backward(
    grad: Any, x: Any, weight: Any, grad_input: Any, grad_weight: Any, grad_bias: Any, tf32: bool
) -> list[Call] | None:
    """None where one of the products cannot be had, or where a bias's gradient has no product to go with."""
    dz, calls = given(grad).joined, []
    if dz is None or (grad_weight is None and grad_bias is not None):
        return None
    if grad_input is not None:
        into = given(grad_input).joined
        calls.append(None if into is None else call_of(dz, given(weight).turned, into, tf32=tf32))
    if grad_weight is not None:
        a, into = given(x).joined, given(grad_weight)
        calls.append(None if a is None else call_of(dz.turned, a.turned, into, sums=view(grad_bias), tf32=tf32))
    return None if None in calls else [call for call in calls if call is not None]


def can_run(x: Any) -> bool:
    """Whether it can run where an array is."""
    return why_not(place_of(x, False)[0]) is None
