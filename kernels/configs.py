"""Tile shapes and warps, a table per generation of chips; each row with its reason, or the measurement behind it.

No autotuning happens on a call: a table is looked up by the chip's name and the problem's size. A generation that a
table does not name uses that of the closest older one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeVar

from .tuning import tunable

T = TypeVar("T")


def for_chip(tables: dict[str, T], chip: str) -> T:
    """The table of a chip: its own, or that of the newest generation before it."""
    if chip in tables:
        return tables[chip]
    if not chip.startswith("sm_"):
        raise RuntimeError(f"the Triton kernels know no configuration for {chip}; they know {', '.join(tables)}")
    number = int(chip.removeprefix("sm_"))
    older = [name for name in tables if name.startswith("sm_") and int(name.removeprefix("sm_")) <= number]
    return tables[max(older, key=lambda name: int(name.removeprefix("sm_")))]


# --- softmax ----------------------------------------------------------------------------------------------------------


class SoftmaxTile(NamedTuple):
    """Rows that a program holds whole."""

    columns: int  # up to as many, a power of two
    elements: int  # so as many rows as that is; fewer elements have fewer warps
    warps: int
    stages: int = 1  # 2: programs stay, and fetch the next row to shared memory while they work on one


class SoftmaxBlock(NamedTuple):
    """A piece of rows that are longer than that."""

    rows: int
    lanes: int  # parts of a row that keep a maximum and a sum of their own
    elements: int
    warps: int


class Softmax(NamedTuple):
    """``columns`` and ``elements`` are those of ``softmax_held`` 1, and a half of it at 2."""

    close: tuple[SoftmaxTile, ...]  # columns lie one behind the other
    apart: tuple[SoftmaxTile, ...]
    long_close: SoftmaxBlock
    long_apart: SoftmaxBlock


def softmax_held(itemsize: int, backward: bool, close: bool, turned: bool, log: bool) -> int:
    """In what measure a thread holds more for an element than one number in 32 bits: both arrays of a backward pass
    count, save what is 16 bits wide and not needed for the sum; float64 also for its exponential, a long subroutine.
    Tiles of the backward pass whose columns lie apart are made for both arrays as it is; but one that is turned on its
    way, since columns lie close in some of the arrays only, counts twice."""
    if itemsize == 8:
        return 4
    return 2 if turned or (backward and close and (itemsize == 4 or not log)) else 1


# 32 to 64 elements a thread: fewer, and what a row costs beside its elements shows; more spill. The comments give, for
# bfloat16 on sm_90, instructions an element and programs that a multiprocessor holds at once, which is how it loads and
# computes at the same time; each has all of its loads under way, so the 26 KiB that the memory asks for always are.
_SOFTMAX = Softmax(
    close=(
        SoftmaxTile(256, 4096, 4),  # a warp or less a row, so nothing passes through shared memory: 18.7, 16 programs
        SoftmaxTile(1024, 2048, 1),  # two rows of a warp: 11.6, 28
        SoftmaxTile(2048, 2048, 2),  # 13.3, 20
        SoftmaxTile(4096, 4096, 4),  # 13.4, 10
        SoftmaxTile(8192, 8192, 8),  # 13.6, 5
        SoftmaxTile(16384, 16384, 8),  # 11.5, 3: 64 elements a thread, since 16 warps would leave room for two
        SoftmaxTile(32768, 32768, 16, stages=2),  # 12.3, and only one, so the next row has to come meanwhile
    ),
    apart=(
        SoftmaxTile(64, 4096, 2),  # 64 rows, lines of 128 bytes: 15.5, 10
        SoftmaxTile(256, 8192, 4),  # 32 rows: 16.4, 4
        SoftmaxTile(1024, 16384, 16),  # 16 rows, the 32 bytes of a sector: 23.8, 2; 8 warps spill with float32 on sm_80
        SoftmaxTile(2048, 32768, 32),  # 23.8, 1: to read them twice would cost more
    ),
    # 17.5. More than 32 registers for each of 1024 threads, so one row a multiprocessor: of rows up to 128K columns all
    # is still in the L2 when it is read again. Two vectors of each thread are under way, 32 KiB.
    long_close=SoftmaxBlock(1, 1024, 16384, 32),
    long_apart=SoftmaxBlock(32, 1, 8192, 8),  # 22.2, 3
)
_SOFTMAX_BACKWARD = Softmax(
    close=(
        SoftmaxTile(256, 4096, 4),  # 15.6, 9
        SoftmaxTile(1024, 2048, 1),  # 10.6, 24
        SoftmaxTile(2048, 2048, 2),
        SoftmaxTile(4096, 4096, 4),  # 12.0, 8
        SoftmaxTile(8192, 8192, 8),  # 12.2, 4
        SoftmaxTile(16384, 16384, 8),  # 10.6, 2
        SoftmaxTile(32768, 32768, 32, stages=2),  # 12.5, 1; 16 warps spill with float32
    ),
    apart=(  # 16 elements a thread: at 32 some dtype or other is at the edge of its registers
        SoftmaxTile(64, 2048, 4),  # 32 rows: 17.9, 12
        SoftmaxTile(256, 8192, 16),  # 32 rows: 18.8, 3
        SoftmaxTile(1024, 16384, 32),  # 16 rows: 19.8, 1
    ),
    long_close=SoftmaxBlock(1, 1024, 16384, 32),  # 15.2
    long_apart=SoftmaxBlock(32, 1, 4096, 8),
)
# Warps of 64 lanes, 512 registers for each, and no copies to shared memory behind a program's back. Its 64 KiB also
# limit the tiles that are turned on their way from an array whose rows lie close to one whose columns do.
_SOFTMAX_GFX942 = Softmax(
    close=(
        SoftmaxTile(512, 4096, 2),
        SoftmaxTile(2048, 2048, 1),
        SoftmaxTile(4096, 4096, 2),
        SoftmaxTile(8192, 8192, 4),
        SoftmaxTile(16384, 16384, 8),
        SoftmaxTile(32768, 32768, 16),
    ),
    apart=(SoftmaxTile(64, 4096, 2), SoftmaxTile(512, 8192, 4)),
    long_close=SoftmaxBlock(1, 1024, 16384, 16),
    long_apart=SoftmaxBlock(32, 1, 8192, 4),
)
SOFTMAX = {"sm_80": _SOFTMAX, "sm_90": _SOFTMAX, "sm_100": _SOFTMAX, "gfx942": _SOFTMAX_GFX942}
SOFTMAX_BACKWARD = {
    "sm_80": _SOFTMAX_BACKWARD,
    "sm_90": _SOFTMAX_BACKWARD,
    "sm_100": _SOFTMAX_BACKWARD,
    "gfx942": _SOFTMAX_GFX942,
}


def softmax_table(chip: str, backward: bool) -> Softmax:
    return for_chip(SOFTMAX_BACKWARD if backward else SOFTMAX, chip)


# --- cross-entropy ----------------------------------------------------------------------------------------------------


class CrossEntropyTile(NamedTuple):
    """Of rows up to this many columns; shorter ones leave room for more of them."""

    columns: int
    warps: int
    programs: int  # at the most, for every multiprocessor
    rows: int = 1
    # Of a thread, at the most. Left alone, the assembler spills what is needed after the loop only, to have one program
    # more. None: the option is not there.
    registers: int | None = 255


class CrossEntropyTiles(NamedTuple):
    """Tiles that hold rows whole, the shortest first, and the one in whose pieces longer rows are gone over."""

    whole: tuple[CrossEntropyTile, ...]
    long: CrossEntropyTile


# By what a thread holds for each logit: "plain" is the loss and its gradient from logits of 16 bits, "half" also
# smoothing, the z-loss and the argmax, "single" logits of 32 bits; "costly" is soft-capping, class probabilities and
# smoothed class weights, which hold a second number, and float64; "costly double" is both.
CrossEntropyTable = dict[str, CrossEntropyTiles]

# Classes lie one behind the other. At least two programs are resident, so that one loads while the other computes: 32
# logits a thread is what 64 registers have room for, 16 if they cost twice as much.
_ALONG = {
    "plain": CrossEntropyTiles(
        (
            CrossEntropyTile(4096, 4, 16),
            CrossEntropyTile(8192, 8, 12),
            CrossEntropyTile(16384, 16, 8, registers=64),
            # One program alone, but of 32 warps, some of which have something to do while others wait.
            CrossEntropyTile(32768, 32, 4, registers=64),
        ),
        CrossEntropyTile(8192, 8, 12),
    ),
    "half": CrossEntropyTiles(
        (CrossEntropyTile(4096, 4, 16), CrossEntropyTile(8192, 8, 12)),
        CrossEntropyTile(4096, 4, 16),
    ),
    "single": CrossEntropyTiles(
        (CrossEntropyTile(4096, 4, 16), CrossEntropyTile(8192, 8, 12), CrossEntropyTile(16384, 16, 8, registers=128)),
        CrossEntropyTile(4096, 4, 16),
    ),
    "costly": CrossEntropyTiles(
        (CrossEntropyTile(2048, 4, 16), CrossEntropyTile(4096, 8, 12), CrossEntropyTile(8192, 16, 8, registers=128)),
        CrossEntropyTile(1024, 4, 16),
    ),
    "costly double": CrossEntropyTiles(
        (CrossEntropyTile(1024, 4, 16), CrossEntropyTile(2048, 8, 12)),
        CrossEntropyTile(512, 4, 16),
    ),
}

# Rows lie one behind the other: 32 and more of them, so that what is read of a class is whole sectors. A thread's
# vector is of as many rows, and each costs what a row costs: so it is to have many classes, too.
_ACROSS = {
    "plain": CrossEntropyTiles(
        (
            CrossEntropyTile(64, 4, 16, rows=64),
            CrossEntropyTile(128, 4, 12, rows=64),
            CrossEntropyTile(256, 4, 12, rows=32),
        ),
        CrossEntropyTile(64, 4, 16, rows=64),
    ),
    **dict.fromkeys(
        ("half", "single"),
        CrossEntropyTiles(
            (CrossEntropyTile(64, 4, 16, rows=64), CrossEntropyTile(256, 8, 12, rows=32)),
            CrossEntropyTile(32, 4, 16, rows=64),
        ),
    ),
    "costly": CrossEntropyTiles(
        (CrossEntropyTile(64, 4, 16, rows=32), CrossEntropyTile(128, 8, 12, rows=32)),
        CrossEntropyTile(32, 4, 16, rows=32),
    ),
    "costly double": CrossEntropyTiles(
        (CrossEntropyTile(32, 4, 16, rows=32), CrossEntropyTile(64, 8, 12, rows=32)),
        CrossEntropyTile(16, 4, 16, rows=32),
    ),
}


def _of_wider_warps(table: CrossEntropyTable) -> CrossEntropyTable:
    """For AMD's warps of 64, of which there are 16 at the most: half as much for each thread, but for the widest."""

    def tile(t: CrossEntropyTile) -> CrossEntropyTile:
        return t._replace(warps=min(t.warps, 16), registers=None)

    return {kind: CrossEntropyTiles(tuple(map(tile, t.whole)), tile(t.long)) for kind, t in table.items()}


CROSS_ENTROPY_ALONG = {"sm_80": _ALONG, "sm_90": _ALONG, "gfx942": _of_wider_warps(_ALONG)}
CROSS_ENTROPY_ACROSS = {"sm_80": _ACROSS, "sm_90": _ACROSS, "gfx942": _of_wider_warps(_ACROSS)}


def cross_entropy_tiles(chip: str, along: bool, kind: str) -> CrossEntropyTiles:
    return for_chip(CROSS_ENTROPY_ALONG if along else CROSS_ENTROPY_ACROSS, chip)[kind]


class NllTile(NamedTuple):
    rows: int
    columns: int


# Nothing is held from one element to the next, so one shape serves every chip: 8 vectors of 16 bytes a thread.
NLL_ROWS = 256  # gathered at a time by 4 warps: two elements a thread
NLL_ALONG = NllTile(1, 8192)
NLL_ACROSS = NllTile(128, 64)  # whole lines of 128 bytes of either
NLL_PROGRAMS = 16  # for every multiprocessor

# --- matmul -----------------------------------------------------------------------------------------------------------


class Tile(NamedTuple):
    """A product's tile, and how it is worked on."""

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int  # tiles of operands under way
    pieces: int = 1  # of the columns, which the epilogue takes one by one
    resident: int = 1  # programs at once on a multiprocessor, which each do one tile after the other
    group: int = 8  # rows of tiles that are gone through together

    @property
    def gated(self) -> Tile:
        """The same for two products at once, which share the registers: half the columns of each."""
        return self._replace(block_n=self.block_n // 2, pieces=max(1, self.pieces // 2))


# What the rows of a table are for: operands by the copy engine ("bulk") or through pointers, and "narrow" where some
# array cannot be read or written in 16 bytes at a time, which takes more registers for addresses.
#
# A tile of m × n needs m + n rows of operands for m·n sums: the larger, the fewer bytes come from the L2 cache for each
# product, until registers or shared memory end it. Epilogues work on pieces of 64 columns: in halves of a tile of 256
# GELU spills on sm_90, in quarters it does not (170 registers on Triton 3.6). All figures are the compiler's; none was
# measured.
_SM_90_MATMUL = {
    "bulk": (
        Tile(128, 256, 64, 8, 4, 4),  # 128 sums a thread of two warpgroups; 4 stages: 208 KiB of 227
        Tile(128, 128, 64, 8, 4, 2),  # 144 KiB: a multiprocessor holds one whatever the stages
        Tile(64, 128, 64, 4, 4, 2, resident=2),  # 104 KiB
        Tile(64, 64, 64, 4, 4, 1, resident=2),  # 72 KiB: fills the chip where there is little to do
    ),
    "bulk tf32": (  # half the depth, since an element has twice the bytes
        Tile(128, 256, 32, 8, 3, 4),  # 3 stages: an operand that lies along the other axis is turned by way of a copy
        Tile(128, 128, 32, 8, 3, 2),
        Tile(64, 64, 32, 4, 3, 1, resident=2),
    ),
    # The rest is for what bulk copies cannot do: pieces of 32 columns, half of which are addresses.
    "bulk narrow": (Tile(128, 128, 64, 8, 4, 4), Tile(64, 64, 64, 4, 4, 2, resident=2)),
    "bulk tf32 narrow": (Tile(128, 128, 32, 8, 3, 4), Tile(64, 64, 32, 4, 3, 2, resident=2)),
    "wide": (Tile(128, 128, 64, 8, 3, 2), Tile(64, 64, 64, 4, 3)),
    "narrow": (Tile(128, 128, 32, 8, 3, 4), Tile(64, 64, 32, 4, 3, 2)),  # loads by elements fill no deeper tile
    "tf32 wide": (Tile(128, 128, 32, 8, 3, 2), Tile(64, 64, 32, 4, 3)),
    "tf32 narrow": (Tile(128, 128, 32, 8, 3, 4), Tile(64, 64, 32, 4, 3, 2)),
    "float32": (Tile(128, 64, 16, 8, 3), Tile(64, 64, 16, 8, 2)),  # no tensor cores: 32 and 16 sums a thread
    "float64": (Tile(64, 64, 16, 8, 2), Tile(32, 32, 16, 4, 3)),  # 16 and 8 sums, of two registers each
}
_SM_80_MATMUL = {
    "wide": (Tile(128, 128, 32, 8, 4, 2), Tile(64, 64, 64, 4, 3)),  # 256 columns leave no registers for the addresses
    "narrow": (Tile(128, 128, 32, 8, 3, 4), Tile(64, 64, 32, 4, 3, 2)),
    "tf32 wide": (Tile(128, 128, 32, 8, 3, 2), Tile(64, 64, 32, 4, 3)),
    "tf32 narrow": (Tile(64, 64, 32, 4, 3, 2),),  # an address for every element: 128 columns spill
    "float32": _SM_90_MATMUL["float32"],
    "float64": (Tile(32, 32, 16, 4, 3),),  # 64 spills
}
_SM_100_MATMUL = {  # the sums are in a memory of their own; small tiles of 4 warps spill in epilogues
    "bulk": _SM_90_MATMUL["bulk"][:3],
    "bulk tf32": (Tile(128, 128, 32, 8, 3, 4), Tile(64, 64, 32, 8, 3, resident=2)),
    "bulk narrow": _SM_90_MATMUL["bulk narrow"],
    "bulk tf32 narrow": _SM_90_MATMUL["bulk tf32 narrow"],
    "wide": _SM_90_MATMUL["wide"],
    "narrow": (Tile(64, 64, 32, 8, 3),),
    "tf32 wide": (Tile(128, 128, 32, 8, 3, 2), Tile(64, 64, 32, 8, 3)),
    "tf32 narrow": (Tile(64, 64, 32, 8, 3, 2),),
    "float32": (Tile(128, 64, 16, 8, 2), Tile(64, 64, 16, 8, 3)),
    "float64": (Tile(64, 64, 16, 8, 2), Tile(32, 32, 16, 4, 2)),
}
_GFX942_MATMUL = {  # pieces of 32 columns: whole tiles would be stored as mfma leaves them, 8 bytes at a time
    "wide": (Tile(128, 256, 32, 8, 2, 4), Tile(128, 128, 64, 8, 2, 4), Tile(64, 128, 64, 4, 2, 4)),
    "narrow": (Tile(128, 128, 32, 8, 2, 4), Tile(64, 64, 32, 4, 2, 2)),
    "tf32 wide": (Tile(128, 128, 32, 8, 2, 2), Tile(64, 64, 32, 4, 2)),
    "tf32 narrow": (Tile(128, 128, 32, 8, 2, 4), Tile(64, 64, 32, 4, 2, 2)),
    "float32": (Tile(128, 128, 16, 8, 2, 2), Tile(64, 64, 16, 4, 2)),
    "float64": (Tile(64, 64, 16, 4, 2, 2), Tile(32, 32, 16, 4, 2, 2)),
}
MATMUL = {
    "sm_80": _SM_80_MATMUL,
    "sm_90": _SM_90_MATMUL,
    "sm_100": _SM_100_MATMUL,
    # The Blackwell of desktops: tensor cores as sm_80 has them, and 99 KiB of shared memory.
    "sm_120": _SM_80_MATMUL | {"float32": _SM_100_MATMUL["float32"]},
    "gfx942": _GFX942_MATMUL,
}


def matmul_tile(chip: str, multiprocessors: int, kind: str, m: int, n: int, gated: bool) -> Tile:
    """The tile with which a product should be done first.

    A round, in which every multiprocessor does one tile, takes as long as the operands take to come: in proportion to
    the tile's rows and columns.
    """

    def rounds(t: Tile) -> int:
        tiles = -(-m // t.block_m) * -(-n // (t.block_n // 2 if gated else t.block_n))
        return -(-tiles // multiprocessors) * (t.block_m + t.block_n)

    best = min(for_chip(MATMUL, chip)[kind], key=rounds)
    return best.gated if gated else best


# --- matmul: Gluon ----------------------------------------------------------------------------------------------------


class GluonTile(NamedTuple):
    """A product's tile in matmul_gluon.py, and how two warpgroups, of half of its rows each, work on it."""

    block_m: int
    block_n: int
    block_k: int
    stages: int  # tiles of operands under way
    parts: int  # of the columns, of which the epilogue writes one after the other
    buffers: int  # parts that may be on their way to memory at once
    group: int = 8


# The tiles that are worth measuring. Each fills the shared memory: 192 KiB for operands under way, 32 KiB for results.
GLUON_TILES = (
    GluonTile(128, 256, 64, 4, 4, 2),  # the most products for what is fetched that the registers of two warpgroups hold
    GluonTile(256, 128, 64, 4, 4, 2),  # as many, of fewer columns
    GluonTile(128, 128, 64, 6, 2, 2),  # for outputs of which those above would be too few to occupy a chip
)


class GluonWin(NamedTuple):
    """Products for which a tile of Gluon's was measured to be faster than what ``matmul_tile`` names."""

    tile: GluonTile
    dtypes: tuple[str, ...]
    along_k: tuple[bool, bool]  # whether the rows of A and of B are dense
    m: range
    n: range
    k: range
    activations: tuple[str | None, ...]
    pre: bool  # the pre-activation is written too
    measured: str  # where and when, and both times


# By chip, which has to be the very one: its successors do not know wgmma. Nothing was measured yet.
GLUON_WINS: dict[str, tuple[GluonWin, ...]] = {}


def gluon_tile(
    chip: str, dtype: str, along_k: tuple[bool, bool], m: int, n: int, k: int, activation: str | None, pre: bool
) -> GluonTile | None:
    """The tile with which Gluon was measured to win; None: it was not."""
    for win in GLUON_WINS.get(chip, ()):
        epilogue = activation in win.activations and pre == win.pre
        if epilogue and dtype in win.dtypes and along_k == win.along_k and m in win.m and n in win.n and k in win.k:
            return win.tile
    return None


# --- linear: the pass that makes dZ -----------------------------------------------------------------------------------


class RowBlock(NamedTuple):
    """A tile of rows and columns, and how far down a program goes, one tile after the other."""

    rows: int
    columns: int
    warps: int
    span: int  # rows of a program, where there are enough to occupy the chip
    programs: int  # at most, for a multiprocessor, where they can go further down instead

    def tile_rows(self, gated: bool, wide: bool, itemsize: int) -> int:
        """Fewer rows where each element of the tile takes more registers: for two derivatives, addresses, float64."""
        return self.rows // (1 + gated) // (1 if wide else 4) // (4 if itemsize == 8 else 1)


# A thread has 4 vectors of 16 bytes of each 16-bit array under way, a multiprocessor of 4 programs 64 KiB. A program's
# sums, written and read once in float32 for 128 rows, are 1 % of 6 bytes for each row and column.
_DZ = RowBlock(32, 128, 4, 128, 16)
DZ = {"sm_80": _DZ, "gfx942": _DZ}

# --- linear + cross-entropy: the logits -------------------------------------------------------------------------------


class Logits(NamedTuple):
    block_m: int  # rows
    block_n: int  # classes
    block_k: int
    warps: int
    stages: int
    pieces: int = 1  # of the columns, which the epilogue takes one by one
    group: int = 8

    @property
    def tile(self) -> int:
        """How many classes the statistics of a tile are of."""
        return self.block_n // self.pieces


# By bytes an element, where targets are class indices. Float32 products are IEEE, which go through the registers.
LOGITS = {
    "sm_80": {
        2: Logits(128, 128, 32, 8, 3, pieces=2),
        4: Logits(128, 64, 16, 8, 2, pieces=2),
        8: Logits(64, 64, 16, 8, 2),
    },
    "sm_90": {
        2: Logits(128, 256, 64, 8, 3, pieces=4),  # the widest tile whose sums two warpgroups can hold
        4: Logits(128, 128, 32, 8, 3, pieces=4),
        8: Logits(64, 64, 16, 8, 2, pieces=2),
    },
    "gfx942": {2: Logits(128, 64, 64, 8, 2), 4: Logits(64, 64, 16, 8, 2), 8: Logits(64, 64, 16, 8, 2)},
}

# Where they are class probabilities: a tile of those and one of shares want registers too.
LOGITS_OF_PROBABILITIES = {
    "sm_80": {2: Logits(64, 64, 64, 8, 3), 4: Logits(64, 64, 16, 8, 2, pieces=2), 8: Logits(32, 64, 16, 8, 2)},
    "sm_90": {
        2: Logits(64, 128, 64, 8, 4, pieces=4),
        4: Logits(64, 64, 32, 8, 3, pieces=2),
        8: Logits(32, 64, 16, 8, 2),
    },
    "gfx942": {2: Logits(64, 64, 64, 8, 2), 4: Logits(64, 64, 16, 8, 2), 8: Logits(32, 64, 16, 8, 2)},
}


# Where they are class indices, and operands of 16 bits come through pointers: of a wider tile the addresses spill.
LOGITS_THROUGH_POINTERS = {
    "sm_80": LOGITS["sm_80"][2],
    "sm_90": Logits(128, 128, 32, 8, 3, pieces=4),
    "sm_100": Logits(128, 128, 32, 8, 3, pieces=2),  # in quarters it spills on Triton 3.9
    "gfx942": LOGITS["gfx942"][2],
}


def logits(chip: str, itemsize: int, indices: bool, bulk: bool) -> Logits:
    """How the logits of a chunk are made."""
    if itemsize == 2 and indices and not bulk:
        return for_chip(LOGITS_THROUGH_POINTERS, chip)
    return for_chip(LOGITS if indices else LOGITS_OF_PROBABILITIES, chip)[itemsize]


# --- measured on this machine -----------------------------------------------------------------------------------------
#
# The lookups that ``tilegrad tune`` may answer better than a table does, for one class of problems at a time: with
# another of its rows.


Whole = TypeVar("Whole", SoftmaxTile, CrossEntropyTile)


def _holding(tiles: Iterable[Whole], columns: int, suits_shorter: Callable[[Whole], bool]) -> list[Whole]:
    """The tile for rows of ``columns``, and the next one, if it suits rows shorter than its own."""
    found = [tile for tile in tiles if columns <= tile.columns][:2]
    return found[:1] if len(found) == 2 and not suits_shorter(found[1]) else found


def _softmax_tiles(chip: str, backward: bool, close: bool, columns: int, itemsize: int) -> list[SoftmaxTile]:
    table = softmax_table(chip, backward)
    if close:
        return _holding(table.close, columns, lambda tile: tile.stages == 1)
    # Of much shorter rows, it would be so many that their addresses spill.
    return _holding(table.apart, columns, lambda tile: tile.columns <= 4 * columns)


@tunable(_softmax_tiles)
def softmax_tile(chip: str, backward: bool, close: bool, columns: int, itemsize: int) -> SoftmaxTile | None:
    """The tile for rows of ``columns``, a power of two, as the table counts them; None if none holds that many."""
    return next(iter(_softmax_tiles(chip, backward, close, columns, itemsize)), None)


def _cross_entropy_tiles(chip: str, along: bool, kind: str, twice: bool, columns: int) -> list[CrossEntropyTile]:
    tiles = cross_entropy_tiles(chip, along, kind)
    if columns > tiles.long.columns and not twice:
        return []
    # Registers are limited to what a single row takes.
    return _holding(tiles.whole, columns, lambda tile: tile.registers in (None, 255))


@tunable(_cross_entropy_tiles)
def cross_entropy_tile(chip: str, along: bool, kind: str, twice: bool, columns: int) -> CrossEntropyTile | None:
    """The tile for rows of ``columns``, a power of two; None if they are not to be held whole.

    ``twice`` says that rows which are not are read twice; otherwise those longer than a piece never are.
    """
    return next(iter(_cross_entropy_tiles(chip, along, kind, twice, columns)), None)


def _matmul_tiles(chip: str, multiprocessors: int, kind: str, m: int, n: int, gated: bool) -> list[Tile]:
    return [tile.gated if gated else tile for tile in for_chip(MATMUL, chip)[kind]]


def _matmul_class(multiprocessors: int, kind: str, m: int, n: int, gated: bool) -> tuple[int, str, int, int, bool]:
    # The sides of all tiles are multiples of 16, so products that differ less are cut into the same number of tiles.
    return multiprocessors, kind, -(-m // 16) * 16, -(-n // 16) * 16, gated


matmul_tile = tunable(_matmul_tiles, _matmul_class)(matmul_tile)
