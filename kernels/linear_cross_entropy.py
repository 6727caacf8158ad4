"""Linear + cross-entropy: loss and gradients of x Wᵀ + b without ever holding all of its logits.

The samples come in chunks. For each chunk, and each of a sample's D losses:

1. ``gather_kernel`` puts the chunk's samples together, those without a target left out;
2. ``logits_kernel`` multiplies them with the weight, keeps the logits if a gradient is wanted, and of every tile of
   classes what the loss needs;
3. ``combine_kernel`` makes each row's loss of that;
4. ``gradient_kernel`` turns the logits into their gradient, in place;
5. two matrix products make the gradients of the input, and, added up in float32 over the chunks, of the weight.

With N samples, C classes, K features, D losses a sample, e bytes an element and a bytes a sum (4, or 8 for float64),
the work and the traffic of one call with both gradients are

    2·N·D·K·C × 3 FLOPs
    N·D·C × 5e bytes of logits (written; read and turned into gradients; read by two products) + O(N·K + C·K)

and the workspace is, beside O(N·D), R·(C + K)·e for chunks of R samples, plus a·C·D·K where the gradient of the weight
has no room for sums over chunks in its own 16 bits. If that does not fit into WORKSPACE, the samples are gone over
twice: for the loss and the gradient of the input, then, a block of classes at a time, for the gradient of the weight.
That is a fourth product (8·N·D·K·C FLOPs), for sums that are float32 all the same.

The method is Liger Kernel's (Hsu et al. 2024, "Liger Kernel: Efficient Triton Kernels for LLM Training"), with the
statistics of the loss taken in the product's epilogue as in Cut Cross-Entropy (Wijmans et al. 2024, "Cut Your Losses in
Large-Vocabulary Language Models").
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import triton
import triton.language as tl

from . import chunk_loss, configs
from .chunk_logits import logits_kernel
from .launch import ALIGNMENT, DType, View, chip_of, descriptor, launch, merged, optional, view
from .matmul import matmul
from .operands import alignment, as_bulk, matrix

WORKSPACE = 256 << 20  # bytes
ROWS = 128  # a chunk is a multiple of this: the tallest tile of a product
COMBINED = 32  # rows whose statistics a program puts together
FEWEST_ROWS = 512  # what a chunk needs at the least for its products to be worth more than their reading of the weight


class Plan(NamedTuple):
    """How a call is cut up."""

    chunk: int  # samples of a chunk
    sums: bool  # the gradient of the weight is added up in a buffer of its own
    block: int  # classes of a block, where the gradient of the weight is made in a second pass; 0: it is not
    block_chunk: int  # and samples of its chunks


def plan(
    samples: int, classes: int, losses: int, features: int, itemsize: int, tile: int, *,
    gradients: bool, grad_weight: bool,
) -> Plan:  # fmt: skip
    """Chunks of as many samples as WORKSPACE has room for."""
    wide = max(4, itemsize)
    logits = _padded(classes, itemsize) * itemsize if gradients else 0
    per_row = features * itemsize + logits + 5 * wide * triton.cdiv(classes, tile) + wide * features * (losses > 1)
    room = WORKSPACE - samples * (4 + 6 * losses * wide)
    chunk = min(max(1, samples), _rounded(room / per_row))
    if not grad_weight or itemsize == wide or chunk >= samples:
        return Plan(chunk, False, 0, 0)
    with_sums = (room - wide * classes * losses * features) / per_row
    if with_sums >= FEWEST_ROWS:
        return Plan(_rounded(with_sums), True, 0, 0)
    # The second pass lives in what held the first one's logits: half of it for a block's sums, half for chunks of
    # samples and their logits.
    half = chunk * logits / 2
    block = min(classes, _rounded(half / (wide * features)))
    block_chunk = min(samples, _rounded(half / ((features + _padded(block, itemsize)) * itemsize)))
    return Plan(chunk, True, block, block_chunk)


def _rounded(rows: float) -> int:
    """Whole tiles, one at the least."""
    return max(ROWS, int(rows) // ROWS * ROWS)


def _padded(classes: int, itemsize: int) -> int:
    """Rows of logits begin on 16 bytes, as bulk copies ask."""
    return triton.cdiv(classes * itemsize, 16) * 16 // itemsize


# --- the call ---------------------------------------------------------------------------------------------------------


class _Call:
    """A call's sizes, its plan, and its arrays seen one d at a time."""

    def __init__(self, x: View, weight: View, target: View, o: Any, gradients: bool, grad_weight: bool, tf32: bool):
        self.x, self.weight, self.target, self.o = x, weight, target, o
        self.samples, self.features = x.shape
        self.classes, self.losses, _ = weight.shape
        self.indices = target.ndim == 2
        self.wide = DType("float64" if x.dtype.name == "float64" else "float32")
        self.tf32, self.gradients = tf32, gradients
        # A sample may be ignored at one d and not at another. Where it is, it must not reach the weight's gradient: it
        # may hold NaN, and 0·NaN is NaN.
        self.regathered = grad_weight and self.indices and self.losses > 1
        chip = chip_of(x)
        gathered = matrix(replace(x, address=0, shape=(ROWS, self.features), strides=(self.features, 1)))
        bulk = all(as_bulk([gathered, matrix(weight.select(1, d))], chip, tf32) for d in range(self.losses))
        self.config = configs.logits(chip.name, x.dtype.itemsize, self.indices, bulk)
        self.plan = plan(
            self.samples, self.classes, self.losses, self.features, x.dtype.itemsize, self.config.tile,
            gradients=gradients, grad_weight=grad_weight,
        )  # fmt: skip

    def second_pass(self) -> list[tuple[str, DType, tuple[int, int]]]:
        """Its buffers: a block's sums, a chunk of samples and their logits."""
        p, pitch = self.plan, _padded(self.plan.block, self.x.dtype.itemsize)
        return [
            ("grad_weight", self.wide, (p.block, self.features)),
            ("x", self.x.dtype, (p.block_chunk, _padded(self.features, self.x.dtype.itemsize))),
            ("logits", self.x.dtype, (p.block_chunk, pitch)),
        ]

    def second_pass_bytes(self) -> int:
        return sum(dtype.itemsize * rows * columns for _, dtype, (rows, columns) in self.second_pass())

    def pitch(self, rows: int) -> int:
        """Statistics are of whole tiles of rows, so that vectors read them, whatever rows there are."""
        tile = max(self.config.block_m, COMBINED)
        return triton.cdiv(rows, tile) * tile

    def chunks(self, length: int) -> list[tuple[int, int]]:
        """(place of the first sample, samples), at least one."""
        return [(at, min(length, self.samples - at)) for at in range(0, max(1, self.samples), length)]


def linear_cross_entropy_workspace(
    x: Any, linear_weight: Any, linear_bias: Any, target: Any, weight: Any, o: Any, *, upstream: Any = None,
    loss: Any = None, lse: Any = None, argmax: Any = None, grad_input: Any = None, grad_weight: Any = None,
    grad_bias: Any = None, grad_target: Any = None, flag: Any = None, tf32: bool = False,
) -> dict[str, tuple[tuple[int, ...], str]]:  # fmt: skip
    """What ``linear_cross_entropy`` of the same arguments needs: shapes and dtypes, by name."""
    gradients = any(g is not None for g in (grad_input, grad_weight, grad_bias, grad_target))
    c = _Call(view(x), view(linear_weight), view(target), o, gradients, grad_weight is not None, tf32)
    p, wide, dtype = c.plan, c.wide.name, c.x.dtype.name
    tiles = triton.cdiv(c.classes, c.config.tile)
    statistics = max(4 * tiles * c.pitch(p.chunk), triton.cdiv(p.block, c.config.tile) * c.pitch(p.block_chunk))
    buffers: dict[str, tuple[tuple[int, ...], str]] = {
        "order": ((max(1, c.samples),), "int32"),
        "counts": ((2,), "int32"),
        "sums": ((2,), "float64"),
        "stats": ((5, c.samples * c.losses), wide),
        "x": ((p.chunk, c.features), dtype),
        "tiles": ((statistics,), wide),
    }
    if loss is not None and o.reduction != "none":
        buffers["losses"] = ((c.samples * c.losses,), wide)
    if argmax is not None:
        buffers["argmax_tiles"] = ((tiles, c.pitch(p.chunk)), "int32")
    if gradients:
        first = p.chunk * _padded(c.classes, c.x.dtype.itemsize)
        buffers["logits"] = ((max(first, c.second_pass_bytes() // c.x.dtype.itemsize),), dtype)
    if grad_input is not None and c.losses > 1:
        buffers["grad_x"] = ((p.chunk, c.features), wide)
    if grad_weight is not None and p.sums and not p.block:
        buffers["grad_weight"] = ((c.losses * c.classes, c.features), wide)
    if grad_bias is not None and dtype != wide:
        buffers["grad_bias"] = ((c.classes, c.losses), wide)
    return buffers


def linear_cross_entropy(
    x: Any,  # (N, K)
    linear_weight: Any,  # (C, D, K)
    linear_bias: Any,  # (C, D) or None
    target: Any,  # (N, D) class indices or (N, C, D) class probabilities
    weight: Any,  # (C) or None
    o: Any,  # LossOptions
    *,
    upstream: Any,  # 0-d or (N, D); None: 1
    loss: Any,  # 0-d or (N, D)
    lse: Any,  # (2, N, D)
    argmax: Any,  # (N, D)
    grad_input: Any,
    grad_weight: Any,
    grad_bias: Any,
    grad_target: Any,
    flag: Any,
    workspace: dict[str, Any],
    tf32: bool = False,
) -> None:
    """The loss of the logits x Wᵀ + b and its gradients, as the reference defines them. None is not wanted, and costs
    nothing."""
    gradients = any(g is not None for g in (grad_input, grad_weight, grad_bias, grad_target))
    call = _Call(view(x), view(linear_weight), view(target), o, gradients, grad_weight is not None, tf32)
    buffers = {name: view(buffer) for name, buffer in workspace.items()}
    run = _Run(call, buffers, optional(linear_bias), optional(weight), optional(upstream))
    made = _Made(*map(optional, (loss, lse, argmax, grad_input, grad_weight, grad_bias, grad_target)))
    run.prepare(optional(flag), keep_all=lse is not None or argmax is not None)
    p = call.plan
    at_once = gradients if not p.block else any(g is not None for g in (grad_input, grad_bias, grad_target))
    for start, rows in call.chunks(p.chunk):
        for d in range(call.losses):
            if d == 0 or call.regathered:
                run.gather(start, rows)
            run.logits(start, rows, d, 0, call.classes, made, statistics=True)
            run.combine(start, rows, d, made)
            if at_once:
                run.gradient(start, rows, d, 0, call.classes, made.grad_target)
            if made.grad_input is not None:
                run.grad_input(start, rows, d, made.grad_input)
            if made.grad_bias is not None:
                run.grad_bias(start, rows, d, made.grad_bias)
            if made.grad_weight is not None and not p.block:
                run.grad_weight(start, rows, d, 0, call.classes, made.grad_weight)
    if p.block and made.grad_weight is not None:
        run.begin_second_pass()
        for d in range(call.losses):
            for first in range(0, call.classes, p.block):
                classes = min(p.block, call.classes - first)
                for start, rows in call.chunks(p.block_chunk):
                    run.gather(start, rows)
                    run.logits(start, rows, d, first, classes, made, statistics=False)
                    run.gradient(start, rows, d, first, classes, None)
                    run.grad_weight(start, rows, d, first, classes, made.grad_weight)
    run.finish(made)


class _Made(NamedTuple):
    """The outputs that are wanted."""

    loss: View | None
    lse: View | None
    argmax: View | None
    grad_input: View | None
    grad_weight: View | None
    grad_bias: View | None
    grad_target: View | None


class _Run:
    """The launches of a call, each named after what it makes."""

    def __init__(
        self, call: _Call, buffers: dict[str, View], bias: View | None, weight: View | None, upstream: View | None
    ):
        self.call, self.buffers, self.bias, self.weight, self.upstream = call, buffers, bias, weight, upstream
        self.order, self.counts, self.sums = (buffers[k] for k in ("order", "counts", "sums"))
        o = call.o
        self.q = {"LABEL_SMOOTHING": o.label_smoothing, "SOFTCAP": o.softcap, "INDICES": call.indices}
        # A target may be ignored by its index only.
        self.ignore_index = o.ignore_index if call.indices else 0
        self.stride_w = 0 if weight is None else weight.strides[0]

    def _target(self, d: int) -> tuple[View, int, int]:
        """(N) indices or (N, C) probabilities of one d, with their strides."""
        t = self.call.target.select(self.call.target.ndim - 1, d)
        return t, t.strides[0], 0 if self.call.indices else t.strides[1]

    def prepare(self, flag: View | None, keep_all: bool) -> None:
        c, t = self.call, self.call.target
        strides = t.strides if c.indices else (0, 0)
        launch(
            chunk_loss.prepare_kernel, (1,), t, *strides, self.weight, self.stride_w, self.order, self.counts,
            self.sums, flag, c.samples, c.losses, c.classes, self.ignore_index, INDICES=c.indices, KEEP_ALL=keep_all,
            BLOCK=512, num_warps=4, num_stages=1,
        )  # fmt: skip

    def begin_second_pass(self) -> None:
        """Its buffers take the place of the first one's logits."""
        memory, at = self.buffers["logits"], 0
        for name, dtype, shape in self.call.second_pass():
            self.buffers[name] = replace(
                memory, address=memory.address + at, dtype=dtype, shape=shape, strides=(shape[1], 1)
            )
            at += dtype.itemsize * shape[0] * shape[1]

    def _x(self, rows: int) -> View:
        return self.buffers["x"].viewed((rows, self.call.features), (self.call.features, 1))

    def gather(self, start: int, rows: int, d: int | None = None) -> None:
        """The samples from place ``start`` on, side by side; with zeros for those that are ignored at ``d``."""
        c, block = self.call, 128
        grid = (triton.cdiv(rows, 16), triton.cdiv(c.features, block))
        target, stride_tn = (None, 0) if d is None else self._target(d)[:2]
        launch(
            chunk_loss.gather_kernel, grid, c.x, *c.x.strides, self.order, self.counts, target, stride_tn,
            self._x(rows), start, rows, c.features, self.ignore_index, ROWS=16, COLUMNS=block, num_warps=4,
        )  # fmt: skip

    def _padded_logits(self, rows: int, classes: int) -> View:
        pitch = _padded(classes, self.call.x.dtype.itemsize)
        return self.buffers["logits"].viewed((rows, pitch), (pitch, 1))

    def _logits(self, rows: int, classes: int) -> View:
        return self._padded_logits(rows, classes).narrow(1, 0, classes)

    def _kept(self, rows: int, classes: int) -> View:
        """The same memory before the gradients are made, with what rows are padded by, so that vectors reach their end.
        Logits of 16-bit inputs are float16 above their tile's maximum: what counts in a row is close to it, and float16
        is the finer there, by far."""
        logits = self._padded_logits(rows, classes)
        return replace(logits, dtype=DType("float16")) if logits.dtype.itemsize == 2 else logits

    def logits(self, start: int, rows: int, d: int, first: int, classes: int, made: _Made, statistics: bool) -> None:
        """x Wᵀ + b of the chunk and of ``classes`` classes from ``first`` on."""
        c, config = self.call, self.call.config
        x, w = self._x(rows), c.weight.select(1, d).narrow(0, first, classes)
        bias = None if self.bias is None else self.bias.select(1, d).narrow(0, first, classes)
        out = self._kept(rows, classes) if c.gradients else None
        target, stride_tn, stride_tc = self._target(d)
        operands = [matrix(x), matrix(w)]
        along = [m.columns.is_dense for m in operands]
        bulk = as_bulk(operands, chip_of(c.x), c.tf32)
        if bulk is not None:
            along = [along_k for _, along_k in bulk]
            blocks = [(config.block_m, config.block_k), (config.block_n, config.block_k)]
            x_arg, w_arg = (
                descriptor(v, list(block) if along_k else list(reversed(block)))
                for (v, along_k), block in zip(bulk, blocks, strict=True)
            )
        else:
            x_arg, w_arg = x, w
        tiles = triton.cdiv(rows, config.block_m) * triton.cdiv(classes, config.block_n)
        launch(
            logits_kernel, (min(tiles, chip_of(c.x).multiprocessors),),
            x_arg, *((None, None) if bulk else operands[0][1:]), w_arg, *((None, None) if bulk else operands[1][1:]),
            bias, 0 if bias is None else bias.strides[0], out, 0 if out is None else out.strides[0],
            self.buffers["tiles"],
            self.buffers["argmax_tiles"] if statistics and made.argmax is not None else None,
            self.order, self.counts, target, stride_tn, stride_tc, self.weight, self.stride_w,
            start, rows, c.pitch(rows), classes, c.features, c.classes, STATISTICS=statistics, **self.q,
            VECTOR=ALIGNMENT // c.x.dtype.itemsize, ACC=getattr(tl, c.wide.name),
            PRECISION="tf32" if c.tf32 else "ieee", BULK=bulk is not None,
            X_ALONG_K=along[0], W_ALONG_K=along[1], ALIGN=1 if bulk else alignment(operands, along),
            PIECES=config.pieces, GROUP=config.group, BLOCK_M=config.block_m, BLOCK_N=config.block_n,
            BLOCK_K=config.block_k, num_warps=config.warps, num_stages=config.stages,
        )  # fmt: skip

    def combine(self, start: int, rows: int, d: int, made: _Made) -> None:
        """The losses and statistics of the chunk's rows."""
        c, mean = self.call, self.call.o.reduction == "mean"
        target, stride_tn, _ = self._target(d)
        upstream, stride_un = self.upstream, 0
        if upstream is not None and upstream.ndim:
            upstream = upstream.select(1, d)
            stride_un = upstream.strides[0]
        per_row = made.loss is not None and c.o.reduction == "none"
        loss = made.loss.select(1, d) if made.loss is not None and per_row else None
        top, log_sum = (None, None) if made.lse is None else (made.lse.select(0, i).select(1, d) for i in (0, 1))
        argmax = None if made.argmax is None else made.argmax.select(1, d)
        launch(
            chunk_loss.combine_kernel, (triton.cdiv(rows, COMBINED),), self.buffers["tiles"],
            self.buffers.get("argmax_tiles"), self.order, self.counts, self.sums, target, stride_tn, upstream,
            stride_un, self.buffers["stats"],
            self.buffers.get("losses"), loss, 0 if loss is None else loss.strides[0], top, log_sum, argmax, c.losses,
            start, rows, c.pitch(rows), triton.cdiv(c.classes, c.config.tile), c.samples, c.losses, d, c.classes,
            self.ignore_index, Z_LOSS=c.o.z_loss, INDICES=c.indices, MEAN=mean, ROWS=COMBINED, TILES=32, num_warps=4,
        )  # fmt: skip

    def gradient(self, start: int, rows: int, d: int, first: int, classes: int, grad_target: View | None) -> None:
        """The chunk's logits become their gradients."""
        c, logits, tile = self.call, self._padded_logits(rows, classes), self.call.config.tile
        target, stride_tn, stride_tc = self._target(d)
        of_target = None if grad_target is None else grad_target.select(2, d)
        height = max(1, (1024 if c.x.dtype.itemsize == 8 else 2048) // tile)  # 16 elements a thread; 8 of float64
        tiles = 8  # of a program: its rows' statistics are then 3% of what it reads
        grid = (triton.cdiv(rows, height), triton.cdiv(classes, tiles * tile))
        launch(
            chunk_loss.gradient_kernel, grid, self._kept(rows, classes), logits, logits.strides[0],
            self.buffers["tiles"], self.buffers["stats"], self.order, self.counts,
            target, stride_tn, stride_tc, self.weight, self.stride_w, of_target,
            *((0, 0) if of_target is None else of_target.strides), start, rows, c.pitch(rows), c.samples, c.losses, d,
            c.classes, first, classes, self.ignore_index, Z_LOSS=c.o.z_loss, **self.q,
            VECTOR=ALIGNMENT // c.x.dtype.itemsize, ROWS=height, COLUMNS=tile, TILES=tiles, num_warps=4,
        )  # fmt: skip

    def grad_input(self, start: int, rows: int, d: int, out: View) -> None:
        """dX = dZ W, each row where its sample is; of several losses a sample, added up before."""
        c, logits = self.call, self._logits(rows, self.call.classes)
        a, b = matrix(logits), matrix(c.weight.select(1, d)).T
        place: dict[str, Any] = {"limit": self.counts, "limit_start": start, "tf32": c.tf32}
        if c.losses == 1:
            matmul(a, b, out, row_index=self.order.narrow(0, start, rows), **place)
            return
        sums = self.buffers["grad_x"].narrow(0, 0, rows)
        matmul(a, b, sums, accumulate=d > 0, **place)
        if d == c.losses - 1:
            self._convert(sums, out, by_order_from=start)

    def grad_weight(self, start: int, rows: int, d: int, first: int, classes: int, out: View) -> None:
        """dW = dZᵀ X, added up over the chunks."""
        c = self.call
        if c.regathered:
            self.gather(start, rows, d)
        out = sums = out.select(1, d).narrow(0, first, classes)
        if "grad_weight" in self.buffers:
            sums = self.buffers["grad_weight"]
            sums = sums.narrow(0, 0, classes) if c.plan.block else sums.narrow(0, d * c.classes, classes)
        matmul(
            matrix(self._logits(rows, classes)).T, matrix(self._x(rows)).T, sums, accumulate=start > 0,
            limit=self.counts, limit_start=start, limit_k=True, tf32=c.tf32,
        )  # fmt: skip
        if sums is not out and start + rows == c.samples:
            self._convert(sums, out)

    def _convert(self, sums: View, out: View, by_order_from: int | None = None) -> None:
        order, counts = (None, None) if by_order_from is None else (self.order, self.counts)
        rows, columns = sums.shape
        height, width = (8, 256) if rows > 1 else (1, 2048)
        launch(
            chunk_loss.convert_kernel, (triton.cdiv(rows, height), triton.cdiv(columns, width)), sums, sums.strides[0],
            out, *out.strides, order, counts, by_order_from or 0, rows, columns, ROWS=height, COLUMNS=width,
            num_warps=4,
        )  # fmt: skip

    def grad_bias(self, start: int, rows: int, d: int, out: View) -> None:
        """db = Σ dZ."""
        c, sums = self.call, self.buffers.get("grad_bias", out).select(1, d)
        logits = self._padded_logits(rows, c.classes)
        launch(
            chunk_loss.column_sums_kernel, (triton.cdiv(c.classes, 64),), logits, logits.strides[0],
            self.counts, sums, sums.strides[0], start, rows, c.classes, FIRST=start == 0,
            VECTOR=ALIGNMENT // logits.dtype.itemsize, ROWS=256 // c.wide.itemsize, COLUMNS=64, num_warps=4,
        )  # fmt: skip

    def finish(self, made: _Made) -> None:
        """The sum of the losses; zeros for the samples that were left out; the bias's gradient in its own dtype."""
        c, mean = self.call, self.call.o.reduction == "mean"
        if made.loss is not None and c.o.reduction != "none":
            launch(
                chunk_loss.total_kernel, (1,), self.buffers["losses"], self.sums, made.loss, c.samples * c.losses,
                MEAN=mean, BLOCK=1024, num_warps=4,
            )  # fmt: skip
        loss = made.loss if c.o.reduction == "none" else None
        if c.indices and (made.grad_input is not None or loss is not None):
            launch(
                chunk_loss.ignored_kernel, (c.samples,), self.order, self.counts,
                made.grad_input, *((0, 0) if made.grad_input is None else made.grad_input.strides),
                loss, *((0, 0) if loss is None else loss.strides), c.samples, c.losses, c.features,
                COLUMNS=1024, num_warps=4,
            )  # fmt: skip
        if made.grad_bias is not None and "grad_bias" in self.buffers:
            sums, out = self.buffers["grad_bias"], made.grad_bias
            sizes, strides = merged(sums.shape, sums.strides, out.strides)
            if len(sizes) < 2:  # one row of all, rather than rows of few
                sums, out = (
                    x.viewed((1, x.size), (0, *(s or (1,)))) for x, s in zip((sums, out), strides, strict=True)
                )
            self._convert(sums, out)
