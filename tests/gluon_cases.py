"""Machine code of the matrix product in Gluon, for tests/test_kernel_gluon.py. Imported only where Triton compiles."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any, NamedTuple
from unittest.mock import patch

from bench.compiling import array, code_of, compiled, launches, launching
from tilegrad.kernels import configs
from tilegrad.kernels.activation import ACTIVATIONS
from tilegrad.kernels.matmul import matmul, matrix
from tilegrad.kernels.matmul_gluon import matmul_gluon

CHIP = launching.Chip("sm_90", 132)


class Code(NamedTuple):
    registers: int
    spilled: int
    shared: int
    opcodes: Counter[str]
    disorder: list[str]


def code(
    tile: configs.GluonTile, dtype: str, along_k: tuple[bool, bool], activation: str | None, bias: bool, pre: bool
) -> Code:
    """Of a product of 4096 × 4096 × 1024."""

    def call() -> None:
        shapes = ((4096, 1024), (4096, 1024))
        operands = [array(*(s if along else s[::-1]), dtype=dtype) for s, along in zip(shapes, along_k, strict=True)]
        out, z = (array(4096, 4096, dtype=dtype) for _ in range(2))
        matmul_gluon(
            list(zip(operands, along_k, strict=True)), out, activation=activation and ACTIVATIONS[activation].of,
            bias=array(4096, dtype=dtype) if bias else None, pre=z if pre else None, tile=tile, chip=CHIP,
        )  # fmt: skip

    (launch,) = launches(call, CHIP.name)
    kernel = compiled(launch, CHIP.name)
    read = code_of(kernel)
    opcodes = Counter(i.opcode.split(".")[0] for i in read.instructions)
    opcodes |= Counter(i.opcode for i in read.instructions if i.opcode.startswith("WARPGROUP."))
    return Code(read.registers, read.spilled, kernel.metadata.shared, opcodes, disorder(kernel.asm["ptx"]))


_STEPS = {
    "products done": r"wgmma\.wait_group",
    "arrival": r"mbarrier\.arrive\.shared",
    "buffers read": r"cp\.async\.bulk\.wait_group\.read",
    "write": r"stmatrix",
    "fence": r"fence\.proxy\.async",
    "copy": r"cp\.async\.bulk\.tensor\.2d\.global",
    "agreed": r"bar\.sync",
}
_STEP = re.compile("|".join(f"(?P<{name.replace(' ', '_')}>{pattern})" for name, pattern in _STEPS.items()))
# What one thread does for all has to lie behind a barrier of all threads, and so has what all do upon its wait.
_ORDERS = [("products done", "arrival"), ("buffers read", "write"), ("fence", "copy")]


def disorder(ptx: str) -> list[str]:
    """Where the threads of a partition do not agree: a barrier is missing between two steps, or a fence."""
    found: list[str] = []
    since: dict[str, list[str]] = {}  # per step, what came after the last of it
    for match in _STEP.finditer(ptx):
        step = str(match.lastgroup).replace("_", " ")
        for first, second in _ORDERS:
            if step == second and "agreed" not in since.get(first, ["agreed"]):
                found.append(f"no barrier between {first} and {second}")
        if step == "copy" and "fence" not in since.get("write", []):
            found.append("no fence between write and copy")
        for later in since.values():
            later.append(step)
        since[step] = []
    return found


def without(what: str) -> list[str]:
    """The disorder of a kernel's PTX from which something is taken."""
    a, b, out = array(4096, 1024), array(4096, 1024), array(4096, 4096)
    (launch,) = launches(
        lambda: matmul_gluon(
            [(a, True), (b, True)], out, activation=None, bias=None, pre=None, tile=configs.GLUON_TILES[0], chip=CHIP
        ),
        CHIP.name,
    )
    return disorder(compiled(launch, CHIP.name).asm["ptx"].replace(what, "//"))


def selected(win: configs.GluonWin | None, chip: str, changed: dict[str, Any]) -> str:
    """What matmul launches for a product, 4096 × 8192 × 1024 unless changed, with this in the table of wins."""
    given = {"m": 4096, "n": 8192, "k": 1024, "dtype": "bfloat16", "activation": "gelu", "pre": True, "gated": False}
    given |= {"turned": False, "rows": None} | changed
    (m, n, k), dtype = (given[name] for name in "mnk"), str(given["dtype"])
    a, b = array(m, k, dtype=dtype), array(n, k, dtype=dtype, strides=(1, n) if given["turned"] else None)
    out = array(m, n, dtype=dtype, strides=(given["rows"] or n, 1))
    pre = array(m, n, dtype=dtype) if given["pre"] else None
    options = {"activation": given["activation"] and ACTIVATIONS[given["activation"]].of, "pre": pre}
    options |= {"b_up": matrix(b), "pre_up": pre} if given["gated"] else {}
    with patch.object(configs, "GLUON_WINS", {} if win is None else {"sm_90": (win,)}):
        (launch,) = launches(lambda: matmul(matrix(a), matrix(b), out, **options), chip)
    return str(launch.kernel.__name__)
