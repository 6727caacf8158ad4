"""The fused operations on the CUDA C++ kernels: the functions of reference.py, launched on arrays of a GPU.

Arrays are torch's or CuPy's, of any strides. Launches go to the current stream of the library that owns them, on the
arrays' device. Nothing here waits or allocates: outputs are handed in, and so is the workspace that each function's
companion lists.

A product of a linear layer goes to the kernel for Hopper where the chip and the layout allow that, else to cuBLASLt
where that is there and takes it, else to the kernel that takes everything.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

from . import _C as _extension
from . import cublaslt
from .activations import CODES
from .cuda_views import SIZES, View, Workspace, buffer, buffer_of, dense, given, place_of, view
from .reference import LossOptions

_C: Any = getattr(_extension, "cuda", None)  # None: this build has no CUDA C++ kernels


def _place(x: Any) -> tuple[int, int]:
    return place_of(x, _C.emulated)


def why_not() -> str | None:
    """Why no kernel can run here, in a sentence; None if they can."""
    if _C is None:
        return "this build of tilegrad has no CUDA C++ kernels; build it where nvcc is found"
    return None if _C.why_not() is None else str(_C.why_not())


# --- linear -----------------------------------------------------------------------------------------------------------


def linear(
    x: Any, weight: Any, bias: Any, activation: str | None, *, out: Any, pre: Any, tf32: bool = False,
    workspace: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    """As in reference.py: one kernel."""
    place = _place(x)
    a = _matrix(given(x), workspace, "x", place)
    ends = _Ends(view(bias), activation, _joined(pre))
    _multiply(a, given(weight), _result(out), ends, tf32, workspace, place)


def linear_workspace(
    x: Any, weight: Any, bias: Any, activation: str | None, *, out: Any, pre: Any, tf32: bool = False
) -> Workspace:
    """The shape and dtype of each buffer."""
    v, place = given(x), _place(x)
    ends = _Ends(view(bias), activation, _joined(pre))
    called = _for_cublaslt(_copied(v), given(weight), _result(out), ends, tf32, place)
    return _copies(x=v) | (cublaslt.workspace_of(place[0]) if called else {})


def linear_backward(
    grad: Any, x: Any, weight: Any, saved: Any, activation: str | None, *, grad_input: Any, grad_weight: Any,
    grad_bias: Any, tf32: bool = False, workspace: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    """As in reference.py: dZ and the bias's gradient in one pass, then a product for each of the other two.

    Without an activation, and where cuBLASLt makes the weight's gradient, that makes the bias's, too.
    """
    place, w = _place(grad), given(weight)
    g = _matrix(given(grad), workspace, "grad", place)
    kept = None if saved is None else _matrix(given(saved), workspace, "saved", place)
    a = None if grad_weight is None else _matrix(given(x), workspace, "x", place)
    done = False
    if activation is None and grad_bias is not None and a is not None:
        ends = _Ends(sums=view(grad_bias))
        done = _on_cublaslt(g.turned, a.turned, given(grad_weight), ends, tf32, workspace, place)
    dz = g
    if activation is not None:
        dz = buffer(workspace, "dz", g.dtype, g.shape[0], w.shape[0])
    if activation is not None or (grad_bias is not None and not done):
        sums = buffer(workspace, "sums", 1, 0).address if workspace and "sums" in workspace else 0
        made = None if activation is None else dz
        _C.dz(g, kept, made, view(grad_bias), CODES[activation], sums, *place)
    if grad_input is not None:
        _multiply(dz, w.turned, _result(grad_input), _PLAIN, tf32, workspace, place)
    if a is not None and not done:
        _multiply(dz.turned, a.turned, given(grad_weight), _PLAIN, tf32, workspace, place)


def linear_backward_workspace(
    grad: Any, x: Any, weight: Any, saved: Any, activation: str | None, *, grad_input: Any, grad_weight: Any,
    grad_bias: Any, tf32: bool = False,
) -> Workspace:  # fmt: skip
    """The shape and dtype of each buffer."""
    g, kept, w, place = given(grad), view(saved), given(weight), _place(grad)
    listed = _copies(grad=g, saved=kept, x=view(x) if grad_weight is not None else None)
    rows, columns = math.prod(g.shape[:-1]), w.shape[0]
    if activation is not None:
        listed["dz"] = buffer_of(rows * columns * SIZES[g.dtype])
    if activation is not None or grad_bias is not None:
        # What it needs hangs on the sizes alone, wherever the arrays will lie.
        matrix = dense(0, g.dtype, rows, g.shape[-1])
        of_saved = None if kept is None else dense(0, g.dtype, rows, kept.shape[-1])
        made = None if activation is None else dense(0, g.dtype, rows, columns)
        needed = _C.dz_workspace_bytes(matrix, of_saved, made, view(grad_bias), CODES[activation])
        if needed:
            listed["sums"] = buffer_of(needed)
    dz = _copied(g) if activation is None else dense(_SOMEWHERE, g.dtype, rows, columns)
    products = []
    if grad_input is not None:
        products.append((dz, w.turned, _result(grad_input)))
    if grad_weight is not None:
        products.append((dz.turned, _copied(given(x)).turned, given(grad_weight)))
    if any(_for_cublaslt(*product, _PLAIN, tf32, place) for product in products):
        listed |= cublaslt.workspace_of(place[0])
    return listed


class _Ends(NamedTuple):
    """What a product ends in."""

    bias: View | None = None
    activation: str | None = None
    pre: View | None = None
    sums: View | None = None  # of the first matrix's rows: only on cuBLASLt


_PLAIN = _Ends()


def _multiply(
    a: View, b: View, out: View, ends: _Ends, tf32: bool, workspace: dict[str, Any] | None, place: tuple[int, int]
) -> None:
    """out = activation(a·bᵀ + bias)."""
    if not _on_cublaslt(a, b, out, ends, tf32, workspace, place):
        _C.matmul(a, b, ends.bias, ends.pre, out, CODES[ends.activation], False, *place)


def _on_cublaslt(
    a: View, b: View, out: View, ends: _Ends, tf32: bool, workspace: dict[str, Any] | None, place: tuple[int, int]
) -> bool:
    """Have the product made there, if that is where it goes."""
    call = _for_cublaslt(a, b, out, ends, tf32, place)
    if call is None:
        return False
    try:
        cublaslt.run(call, workspace, place)
    except NotImplementedError:  # this version of it has no kernel for that
        return False
    return True


def _for_cublaslt(a: View, b: View, out: View, ends: _Ends, tf32: bool, place: tuple[int, int]) -> cublaslt.Call | None:
    """The call, if the product goes there: the rule for all products of linear layers."""
    if cublaslt.why_not(place[0]) is not None:
        return None
    if _C.hopper_takes(a, b, ends.bias, ends.pre, out, CODES[ends.activation], False, *place):
        return None
    return cublaslt.call_of(a, b, out, **ends._asdict(), tf32=tf32)


_SOMEWHERE = 1 << 8  # the address of what is not made yet: aligned, as it will be


def _copied(x: View) -> View:
    """What `_matrix` will make of it."""
    return x.joined or dense(_SOMEWHERE, x.dtype, math.prod(x.shape[:-1]), x.shape[-1])


def _joined(x: Any) -> View | None:
    return None if x is None else _result(x)


def _result(x: Any) -> View:
    """An output of ours, as a matrix."""
    made = given(x).joined
    assert made is not None
    return made


def _matrix(x: View, workspace: dict[str, Any] | None, name: str, place: tuple[int, int]) -> View:
    """(…, K) as (rows, K): a copy where no strides reach the rows."""
    joined = x.joined
    if joined is not None:
        return joined
    made = buffer(workspace, name, x.dtype, *x.shape)
    _C.copy(x, made, None, 0, *place)
    return dense(made.address, x.dtype, math.prod(x.shape[:-1]), x.shape[-1])


def _copies(**arrays: View | None) -> Workspace:
    return {
        name: buffer_of(math.prod(x.shape) * SIZES[x.dtype])
        for name, x in arrays.items()
        if x is not None and x.joined is None
    }


# --- softmax ----------------------------------------------------------------------------------------------------------


def softmax(x: Any, dim: int, log: bool, *, out: Any) -> None:
    """As in reference.py."""
    v = given(x)
    _C.softmax(v, None, dim % max(1, len(v.shape)), log, view(out), *_place(x))


def softmax_backward(grad: Any, y: Any, dim: int, log: bool, *, out: Any) -> None:
    """As in reference.py."""
    v = given(y)
    _C.softmax(view(grad), v, dim % max(1, len(v.shape)), log, view(out), *_place(grad))


# --- losses -----------------------------------------------------------------------------------------------------------

_REDUCTIONS = {"none": 0, "sum": 1, "mean": 2}
_NO_WORKSPACE = (0, 0, 0, 0)


def _options(o: LossOptions) -> tuple[int, int, float, float, float]:
    return _REDUCTIONS[o.reduction], o.ignore_index, o.label_smoothing, o.z_loss, o.softcap


def _single(workspace: dict[str, Any] | None) -> tuple[int, int, int, int]:
    """The workspace of a loss that one launch makes."""
    return (given(workspace["loss"]).address, 0, 0, 0) if workspace else _NO_WORKSPACE


def _loss_workspace(blocks: int) -> Workspace:
    return {"loss": buffer_of(_C.loss_workspace_bytes(blocks))}


def cross_entropy(
    logits: Any, target: Any, weight: Any, o: LossOptions, *, loss: Any, lse: Any, argmax: Any, grad: Any, flag: Any,
    workspace: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    """As in reference.py."""
    _C.cross_entropy(
        None, view(logits), view(target), view(weight), *_options(o), view(loss), view(lse), view(argmax), view(grad),
        None, view(flag), *_single(workspace), *_place(logits),
    )  # fmt: skip


def cross_entropy_workspace(
    logits: Any, target: Any, weight: Any, o: LossOptions, *, loss: Any, lse: Any, argmax: Any, grad: Any, flag: Any
) -> Workspace:
    """The shape and dtype of each buffer."""
    if o.reduction == "none" and (not o.label_smoothing or weight is None):
        return {}
    return _loss_workspace(_C.cross_entropy_blocks(view(logits), view(target), view(grad)))


def cross_entropy_backward(
    upstream: Any, logits: Any, target: Any, weight: Any, lse: Any, o: LossOptions, *, grad: Any, grad_target: Any,
    workspace: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    """As in reference.py, from the logsumexp of the rows."""
    _C.cross_entropy_backward(
        view(upstream), view(logits), view(target), view(weight), view(lse), *_options(o), view(grad),
        view(grad_target), *_single(workspace), *_place(logits),
    )  # fmt: skip


def cross_entropy_backward_workspace(
    upstream: Any, logits: Any, target: Any, weight: Any, lse: Any, o: LossOptions, *, grad: Any, grad_target: Any
) -> Workspace:
    """The shape and dtype of each buffer."""
    return _loss_workspace(0) if o.reduction == "mean" or (o.label_smoothing and weight is not None) else {}


def nll_loss(
    logp: Any, target: Any, weight: Any, o: LossOptions, *, loss: Any, flag: Any,
    workspace: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    """As in reference.py."""
    _C.nll_loss(
        view(logp), view(target), view(weight), *_options(o), view(loss), view(flag), *_single(workspace),
        *_place(logp),
    )  # fmt: skip


def nll_loss_workspace(logp: Any, target: Any, weight: Any, o: LossOptions, *, loss: Any, flag: Any) -> Workspace:
    """The shape and dtype of each buffer."""
    return {} if o.reduction == "none" else _loss_workspace(0)


def nll_loss_backward(
    upstream: Any, logp: Any, target: Any, weight: Any, o: LossOptions, *, grad: Any,
    workspace: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    """As in reference.py."""
    _C.nll_loss_backward(
        view(upstream), view(logp), view(target), view(weight), *_options(o), view(grad), *_single(workspace),
        *_place(logp),
    )  # fmt: skip


def nll_loss_backward_workspace(
    upstream: Any, logp: Any, target: Any, weight: Any, o: LossOptions, *, grad: Any
) -> Workspace:
    """The shape and dtype of each buffer."""
    return _loss_workspace(0) if o.reduction == "mean" else {}


def scale(upstream: Any, *, inplace: Any) -> None:
    """As in reference.py."""
    _C.scale(view(inplace), view(upstream), *_place(inplace))


# --- linear + cross-entropy -------------------------------------------------------------------------------------------

LOGITS = 64 << 20  # bytes of them that are held at a time


class _Chunks:
    """How linear_cross_entropy is cut: chunks of samples, each at D positions, and what memory that takes."""

    def __init__(self, x: Any, linear_weight: Any, target: Any, weight: Any, grads: tuple[Any, ...], loss: Any):
        self.x, self.w, self.target = given(x), given(linear_weight), given(target)
        (self.samples, self.features), (self.classes, self.positions, _) = self.x.shape, self.w.shape
        self.dtype = self.x.dtype
        self.wide = 0 if SIZES[self.dtype] == 2 else self.dtype
        self.indices = len(self.target.shape) == 2
        self.step = max(1, min(self.samples, LOGITS // max(1, self.classes * SIZES[self.wide])))
        self.parts = -(-self.samples // self.step)  # 0 of no samples
        self.grad_input, self.grad_weight, self.grad_bias, self.grad_target = map(view, grads)
        self.of_logits = any(g is not None for g in grads[:3])
        # Sums of several parts are of the wider dtype.
        self.sums_input = self.grad_input is not None and self.positions > 1 and self.wide != self.dtype
        self.sums_weight = self.grad_weight is not None and self.parts > 1 and self.wide != self.dtype
        self.weighted = weight is not None
        self.scalar = loss is not None and not given(loss).shape

    def starts(self) -> range:
        return range(0, self.samples, self.step)

    def logits(self, workspace: dict[str, Any], start: int) -> tuple[View, View | None]:
        """Of the chunk from ``start`` the logits, and their gradient, if it is wanted."""
        n = min(self.step, self.samples - start)
        z = buffer(workspace, "logits", self.wide, n, self.classes)
        if not self.of_logits:
            return z, None
        return z, z if self.wide == self.dtype else buffer(workspace, "dz", self.dtype, n, self.classes)

    def of(self, array: Any, start: int, d: int, dim: int = 0) -> View | None:
        """An array's part of the chunk from ``start``, its samples along ``dim``, at position ``d`` of the last one."""
        v = view(array)
        if v is None or not v.shape:
            return v
        return v.part(start, min(start + self.step, self.samples), dim).at(len(v.shape) - 1, d)

    def blocks(self, workspace: dict[str, Any]) -> list[int]:
        """The first block of each launch of the loss, and how many there are in all."""
        firsts = [0]
        for start in self.starts():
            z, dz = self.logits(workspace, start)
            for d in range(self.positions):
                firsts.append(firsts[-1] + _C.cross_entropy_blocks(z, self.of(self.target, start, d), dz))
        return firsts

    def workspace(self) -> Workspace:
        rows = self.step
        listed = {
            "loss": buffer_of(_C.loss_workspace_bytes(self.samples * self.positions)),  # a block for each row at most
            "logits": buffer_of(rows * self.classes * SIZES[self.wide]),
            "one": buffer_of(8),
        }
        if self.of_logits and self.wide != self.dtype:
            listed["dz"] = buffer_of(rows * self.classes * SIZES[self.dtype])
        if self.indices and self.grad_weight is not None:
            listed["x"] = buffer_of(rows * self.features * SIZES[self.dtype])
        if self.sums_input:
            listed["sums_input"] = buffer_of(rows * self.features * SIZES[self.wide])
        if self.sums_weight:
            listed["sums_weight"] = buffer_of(self.w.size * SIZES[self.wide])
        if self.grad_bias is not None:
            listed["sums_bias"] = buffer_of(self.classes * self.positions * SIZES[self.wide])
        return listed


def linear_cross_entropy_workspace(
    x: Any, linear_weight: Any, linear_bias: Any, target: Any, weight: Any, o: LossOptions, *, upstream: Any,
    loss: Any, lse: Any, argmax: Any, grad_input: Any, grad_weight: Any, grad_bias: Any, grad_target: Any, flag: Any,
    tf32: bool = False,
) -> Workspace:  # fmt: skip
    """The shape and dtype of each buffer."""
    grads = grad_input, grad_weight, grad_bias, grad_target
    return _Chunks(x, linear_weight, target, weight, grads, loss).workspace()


def linear_cross_entropy(
    x: Any, linear_weight: Any, linear_bias: Any, target: Any, weight: Any, o: LossOptions, *, upstream: Any,
    loss: Any, lse: Any, argmax: Any, grad_input: Any, grad_weight: Any, grad_bias: Any, grad_target: Any, flag: Any,
    tf32: bool = False, workspace: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    """As in reference.py: of each chunk the logits, then the loss with their gradient, then what becomes of that.

    With N samples, C classes and K features: 6·N·C·K FLOPs with both gradients. Logits are float32 (float64 of
    float64), and so are sums of gradients of several parts; a single part's gradient is rounded to 16 bits before it is
    multiplied.
    """
    assert workspace is not None
    place, grads = _place(x), (grad_input, grad_weight, grad_bias, grad_target)
    c = _Chunks(x, linear_weight, target, weight, grads, loss)
    bias, of_classes, flagged = view(linear_bias), view(weight), view(flag)
    options, address = _options(o), given(workspace["loss"]).address
    counted = c.target if c.indices else None
    _C.count_targets(counted, of_classes, c.classes, *options, address, 0, 0, 0, *place)
    one = buffer(workspace, "one", c.dtype, 1, 1)
    if c.grad_bias is not None:
        _C.put(one, 1.0, *place)
    firsts = c.blocks(workspace)
    for launched, (start, d) in enumerate(itertools.product(c.starts(), range(c.positions))):
        stop = min(start + c.step, c.samples)
        a, w, t = c.x.part(start, stop), c.w.at(1, d), c.of(c.target, start, d)
        z, dz = c.logits(workspace, start)
        _C.matmul(a, w, None if bias is None else bias.at(1, d), None, z, -1, False, *place)
        _C.cross_entropy(
            c.of(upstream, start, d), z, t, of_classes, *options, c.of(loss, start, d), c.of(lse, start, d, 1),
            c.of(argmax, start, d), dz, c.of(c.grad_target, start, d), flagged, address, firsts[launched], firsts[-1],
            c.samples * c.positions, *place,
        )  # fmt: skip
        if dz is None:
            continue
        if c.grad_input is not None:
            made = c.grad_input.part(start, stop)
            sums = buffer(workspace, "sums_input", c.wide, stop - start, c.features) if c.sums_input else made
            _C.matmul(dz, w.turned, None, None, sums, -1, d > 0, *place)
            if c.sums_input and d == c.positions - 1:
                _C.copy(sums, made, None, 0, *place)
        if c.grad_weight is not None:
            kept = a
            if c.indices:  # an ignored row may hold NaN, and 0·NaN is NaN
                kept = buffer(workspace, "x", c.dtype, stop - start, c.features)
                _C.copy(a, kept, t, o.ignore_index, *place)
            sums = _sums(workspace, "sums_weight", c.wide, c.grad_weight) if c.sums_weight else c.grad_weight
            _C.matmul(dz.turned, kept.turned, None, None, sums.at(1, d), -1, start > 0, *place)
        if c.grad_bias is not None:
            sums = _sums(workspace, "sums_bias", c.wide, c.grad_bias).part(d, d + 1, 1)
            ones = one._replace(shape=(1, stop - start), strides=(0, 0))
            _C.matmul(dz.turned, ones, None, None, sums, -1, start > 0, *place)
    _finish(c, o, loss, workspace, place)


def _sums(workspace: dict[str, Any], name: str, dtype: int, like: View) -> View:
    return buffer(workspace, name, dtype, *like.shape)


def _finish(c: _Chunks, o: LossOptions, loss: Any, workspace: dict[str, Any], place: tuple[int, int]) -> None:
    """Write what is in sums, and what no launch has written where there are no samples."""
    if c.samples == 0:
        if c.scalar:
            z = dense(0, c.wide, 0, c.classes)
            t = dense(0, c.target.dtype, *((0,) if c.indices else (0, c.classes)))
            _C.cross_entropy(None, z, t, None, *_options(o), view(loss), *[None] * 5, *_single(workspace), *place)
        for grad in (c.grad_weight, c.grad_bias):
            if grad is not None:
                whole = dense(grad.address, grad.dtype, c.classes, grad.size // max(1, c.classes))
                a, b = (dense(0, grad.dtype, 0, columns).turned for columns in whole.shape)
                _C.matmul(a, b, None, None, whole, -1, False, *place)
        return
    if c.sums_weight and c.grad_weight is not None:
        _C.copy(_sums(workspace, "sums_weight", c.wide, c.grad_weight), c.grad_weight, None, 0, *place)
    if c.grad_bias is not None:
        _C.copy(_sums(workspace, "sums_bias", c.wide, c.grad_bias), c.grad_bias, None, 0, *place)
