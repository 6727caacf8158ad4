"""The matrix product of matmul.py for Hopper, written a level below Triton: out = activation(A Bᵀ + bias).

In Triton the compiler decides which warps fetch, and when. Here the kernel does, in Gluon: one warp brings tiles by
bulk copies (TMA) into a ring of stages; two warpgroups multiply them (wgmma), and write the result by bulk copies too.
So the fetching runs ahead across the end of a tile, while its epilogue is still being worked on.

Where this wins is a matter of measurement: ``configs.GLUON_WINS`` says where, and nothing else selects it. Gluon is an
experimental part of Triton, so this module is imported only where it is called.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from .configs import GluonTile
from .launch import Chip, View, launch
from .matmul import tile_at

bulk_load = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared  # renamed in Triton 3.8
bulk_store = tma.async_store if hasattr(tma, "async_load") else tma.async_copy_shared_to_global
bulk_store_wait = tma.store_wait

# --- the ring ---------------------------------------------------------------------------------------------------------

# A tile is of two consumers, each a warpgroup: one has the upper half of the rows, the other the lower. Nothing joins
# them but the ring, so one may be some stages ahead, or at its epilogue while the other still multiplies.
#
# The ring is kept sound by two barriers for each of its stages. ``full`` completes a phase when all that belongs in the
# stage has arrived, ``empty`` when both consumers are done with the products that read it. A wait names the parity of
# the phase that it waits for, and a new barrier counts as having completed one of parity 1: so the producer finds every
# stage empty at first. Parity is enough, as no barrier completes two phases between two waits of the same waiter.

CONSUMERS = gl.constexpr(2)


@gluon.jit
def _next_stage(stage, phase, STAGES: gl.constexpr):
    """The stage after this one, and the parity of its phase, which turns with every round of the ring."""
    last = stage == STAGES - 1
    return gl.where(last, 0, stage + 1), gl.where(last, phase ^ 1, phase)


# --- the producer -----------------------------------------------------------------------------------------------------


@gluon.jit
def _produce(
    a_desc, b_desc, a_ring, b_ring, full, empty, m, n, k,
    ROWS: gl.constexpr, COLUMNS: gl.constexpr, DEPTH: gl.constexpr, GROUP: gl.constexpr,
    A_ALONG_K: gl.constexpr, B_ALONG_K: gl.constexpr,
):  # fmt: skip
    """Of one warp: bring the tiles of A and B, in the order in which they are consumed."""
    STAGES: gl.constexpr = b_ring.shape[0]
    # Beyond the edges there come zeros, which count too: every stage gets the same number of bytes.
    NBYTES: gl.constexpr = CONSUMERS * a_desc.block_type.nbytes + b_desc.block_type.nbytes
    tiles_m, tiles_n = gl.cdiv(m, CONSUMERS * ROWS), gl.cdiv(n, COLUMNS)
    stage, phase = 0, 0
    for tile in range(gl.program_id(0), tiles_m * tiles_n, gl.num_programs(0)):
        tile_m, tile_n = tile_at(tile, tiles_m, tiles_n, GROUP)
        for first_k in range(0, k, DEPTH):
            mbarrier.wait(empty.index(stage), phase ^ 1)
            mbarrier.expect(full.index(stage), NBYTES)
            for consumer in gl.static_range(CONSUMERS):
                row = (tile_m * CONSUMERS + consumer) * ROWS
                at = [row, first_k] if A_ALONG_K else [first_k, row]
                bulk_load(a_desc, at, full.index(stage), a_ring.index(stage * CONSUMERS + consumer))
            at = [tile_n * COLUMNS, first_k] if B_ALONG_K else [first_k, tile_n * COLUMNS]
            bulk_load(b_desc, at, full.index(stage), b_ring.index(stage))
            stage, phase = _next_stage(stage, phase, STAGES)


# --- the consumers ----------------------------------------------------------------------------------------------------


@gluon.jit
def _halves(x):
    """The left and the right half of the columns. Each thread has as much of either, so nothing moves."""
    return x.reshape((x.shape[0], 2, x.shape[1] // 2)).permute((0, 2, 1)).split()


@gluon.jit
def _store(desc, row, column, buffer, z, PENDING: gl.constexpr):
    """Write a tile by a bulk copy out of a buffer, which none but the last PENDING copies can still be reading."""
    bulk_store_wait(PENDING)
    buffer.store(z.to(desc.dtype))
    fence_async_shared()  # copies read by another path than threads write: without it, what was there before
    bulk_store(desc, [row, column], buffer)


@gluon.jit
def _consume(
    out_desc, pre_desc, bias_ptr, stride_b, a_ring, b_ring, buffers, full, empty, m, n, k, CONSUMER: gl.constexpr,
    ROWS: gl.constexpr, COLUMNS: gl.constexpr, DEPTH: gl.constexpr, GROUP: gl.constexpr,
    A_ALONG_K: gl.constexpr, B_ALONG_K: gl.constexpr, PARTS: gl.constexpr, ACTIVATION: gl.constexpr,
):  # fmt: skip
    """Of a warpgroup: multiply what arrives, and write the result, a part of its columns after the other."""
    STAGES: gl.constexpr = b_ring.shape[0]
    BUFFERS: gl.constexpr = buffers.shape[0] // CONSUMERS
    STORES: gl.constexpr = 1 if pre_desc is None else 2  # of a part
    WIDTH: gl.constexpr = COLUMNS // PARTS
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [gl.num_warps(), 1], [16, COLUMNS, 16])
    tiles_m, tiles_n = gl.cdiv(m, CONSUMERS * ROWS), gl.cdiv(n, COLUMNS)
    stage, phase = 0, 0
    for tile in range(gl.program_id(0), tiles_m * tiles_n, gl.num_programs(0)):
        tile_m, tile_n = tile_at(tile, tiles_m, tiles_n, GROUP)
        acc = gl.zeros((ROWS, COLUMNS), gl.float32, layout)
        before = stage
        for first_k in range(0, k, DEPTH):
            mbarrier.wait(full.index(stage), phase)
            a, b = a_ring.index(stage * CONSUMERS + CONSUMER), b_ring.index(stage)
            if not A_ALONG_K:
                a = a.permute((1, 0))
            if B_ALONG_K:
                b = b.permute((1, 0))
            running = warpgroup_mma(a, b, acc, is_async=True)
            # Once no other product than this is running, the one before it has read its stage.
            acc = warpgroup_mma_wait(1, deps=(running,))
            mbarrier.arrive(empty.index(before), pred=first_k > 0)
            before = stage
            stage, phase = _next_stage(stage, phase, STAGES)
        acc = warpgroup_mma_wait(0, deps=(acc,))
        mbarrier.arrive(empty.index(before))

        parts = (acc,)
        if PARTS == 2:
            parts = _halves(acc)
        if PARTS == 4:
            left, right = _halves(acc)
            parts = _halves(left) + _halves(right)
        row = (tile_m * CONSUMERS + CONSUMER) * ROWS
        for i in gl.static_range(PARTS):
            z = parts[i]
            column = tile_n * COLUMNS + i * WIDTH
            if bias_ptr is not None:
                columns = column + gl.arange(0, WIDTH, gl.SliceLayout(0, z.type.layout))
                bias = gl.load(bias_ptr + columns.to(gl.int64) * stride_b, columns < n, 0.0)
                z += gl.expand_dims(bias.to(gl.float32), 0)
            if pre_desc is not None:
                buffer = buffers.index(CONSUMER * BUFFERS + STORES * i % BUFFERS)
                _store(pre_desc, row, column, buffer, z, BUFFERS - 1)
            if ACTIVATION is not None:
                z = ACTIVATION(z)
            buffer = buffers.index(CONSUMER * BUFFERS + (STORES * i + STORES - 1) % BUFFERS)
            _store(out_desc, row, column, buffer, z, BUFFERS - 1)
    bulk_store_wait(0)  # the shared memory goes to another program after this one


# --- both -------------------------------------------------------------------------------------------------------------


@gluon.jit
def _tiles(desc, COUNT: gl.constexpr):
    """Shared memory for so many tiles of a descriptor's."""
    return gl.allocate_shared_memory(desc.dtype, [COUNT] + desc.block_type.shape, desc.layout)  # noqa: RUF005


@gluon.jit
def matmul_gluon_kernel(
    a_desc, b_desc, out_desc, pre_desc, bias_ptr, stride_b, m, n, k,
    ROWS: gl.constexpr, COLUMNS: gl.constexpr, DEPTH: gl.constexpr, GROUP: gl.constexpr,
    STAGES: gl.constexpr, PARTS: gl.constexpr, BUFFERS: gl.constexpr,
    A_ALONG_K: gl.constexpr, B_ALONG_K: gl.constexpr, ACTIVATION: gl.constexpr,
):  # fmt: skip
    """A program has its number's tile, and those that follow at the distance of the number of programs. Its consumers
    have (ROWS, COLUMNS) of a tile each, and BUFFERS for what they write of it."""
    gl.static_assert(STAGES > 1)  # one is given up only when the next one is being multiplied
    gl.static_assert(PARTS == 1 or PARTS == 2 or PARTS == 4)
    gl.static_assert(PARTS % BUFFERS == 0)  # or a tile would not begin with the buffer after the last
    a_ring = _tiles(a_desc, STAGES * CONSUMERS)
    b_ring = _tiles(b_desc, STAGES)
    buffers = _tiles(out_desc, CONSUMERS * BUFFERS)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(empty.index(i), count=CONSUMERS)
    fence_async_shared()  # bulk copies, too, report to them
    gl.warp_specialize(
        [
            (_consume, (out_desc, pre_desc, bias_ptr, stride_b, a_ring, b_ring, buffers, full, empty, m, n, k, 0,
                        ROWS, COLUMNS, DEPTH, GROUP, A_ALONG_K, B_ALONG_K, PARTS, ACTIVATION)),
            (_consume, (out_desc, pre_desc, bias_ptr, stride_b, a_ring, b_ring, buffers, full, empty, m, n, k, 1,
                        ROWS, COLUMNS, DEPTH, GROUP, A_ALONG_K, B_ALONG_K, PARTS, ACTIVATION)),
            (_produce, (a_desc, b_desc, a_ring, b_ring, full, empty, m, n, k,
                        ROWS, COLUMNS, DEPTH, GROUP, A_ALONG_K, B_ALONG_K)),
        ],
        [4, 1],
        [240, 24],  # registers of a thread; the first consumer has what is left, which is 240 too
    )  # fmt: skip


# --- the launcher -----------------------------------------------------------------------------------------------------


def matmul_gluon(
    operands: Sequence[tuple[View, bool]],  # A, B: (m, k) and (n, k), True; or turned, False
    out: View,  # (m, n)
    *,
    activation: Any,  # a function of activation.py, or None
    bias: View | None,  # (n)
    pre: View | None,  # (m, n): out before the activation
    tile: GluonTile,
    chip: Chip,
) -> None:
    """out = activation(A Bᵀ + bias), in one launch: matmul.py's ``matmul`` for operands and results that all suit bulk
    copies (launch.fits_descriptor), of one dtype of 16 bits."""
    (a, a_along_k), (b, b_along_k) = operands
    (m, k), n = a.shape if a_along_k else a.shape[::-1], out.shape[1]
    rows = tile.block_m // CONSUMERS.value
    tiles = triton.cdiv(m, tile.block_m) * triton.cdiv(n, tile.block_n)
    part = [rows, tile.block_n // tile.parts]
    launch(
        matmul_gluon_kernel,
        (min(tiles, chip.multiprocessors),),
        _described(a, [rows, tile.block_k] if a_along_k else [tile.block_k, rows]),
        _described(b, [tile.block_n, tile.block_k] if b_along_k else [tile.block_k, tile.block_n]),
        _described(out, part),
        None if pre is None else _described(pre, part),
        *(bias, 0 if bias is None else bias.strides[0], m, n, k),
        ROWS=rows, COLUMNS=tile.block_n, DEPTH=tile.block_k, GROUP=tile.group,
        STAGES=tile.stages, PARTS=tile.parts, BUFFERS=tile.buffers,
        A_ALONG_K=a_along_k, B_ALONG_K=b_along_k, ACTIVATION=activation, num_warps=4,
    )  # fmt: skip


def _described(v: View, block: list[int]) -> TensorDescriptor:
    """A tensor descriptor that says how a block lies in shared memory, too: swizzled, as wgmma reads it."""
    layout = gl.NVMMASharedLayout.get_default_for(block, getattr(gl, v.dtype.name))
    return TensorDescriptor(v, list(v.shape), list(v.strides), block, layout)
