"""The CUDA C++ kernels in the table of bench.static: nvcc compiles them for each chip, and their machine code is read.

What is launched with what is asked of the launchers themselves: they run under the emulator of tests/, on arrays that
are not there, for a chip of the capability in question, and launches are written down instead of run.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import re
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tilegrad import cuda_kernels
from tilegrad.cuda_views import CODES, SIZES, View, dense
from tilegrad.reference import LossOptions

from . import machine_code
from .machine_code import MachineCode
from .rules import Row

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))  # where the emulator lives
import emulated  # noqa: E402
from cuda_emulator import build  # noqa: E402

ARCHITECTURES = {"sm_80": "80", "sm_90": "90a", "sm_100": "100"}
CACHE = ROOT / "build" / "cuda-cubins"

# --- compiled code ----------------------------------------------------------------------------------------------------


@functools.cache
def codes(chip: str) -> dict[str, MachineCode]:
    """Every kernel's machine code, by the name that the emulator knows it by."""
    return {name: code for unit in sorted((ROOT / "csrc/cuda").glob("*.cu")) for name, code in _codes(unit, chip)}


def _codes(unit: Path, chip: str) -> Iterator[tuple[str, MachineCode]]:
    cubin = _cubin(unit, ARCHITECTURES[chip])
    usage = machine_code.dumped(cubin, "-res-usage")
    sass = machine_code.dumped(cubin, "-sass")
    functions = dict(re.findall(r"Function : (\S+)\n(.*?)(?=Function : |\Z)", sass, re.DOTALL))
    for mangled, line in re.findall(r"Function (\S+):\n\s*(REG:.*)", usage):
        yield _demangled(mangled), machine_code.of_sass(line + "\n" + functions[mangled])


def _demangled(name: str) -> str:
    """A kernel's name and template arguments."""
    text = subprocess.run(["c++filt", name], capture_output=True, text=True, check=True).stdout.strip()
    text = text.replace("(anonymous namespace)::", "").removeprefix("void ")
    depth = 0
    for i, c in enumerate(text):
        depth += (c == "<") - (c == ">")
        if c == "(" and depth == 0:
            return text[:i]
    return text


def _cubin(unit: Path, architecture: str) -> Path:
    flags = ["-std=c++17", "-O3", f"-gencode=arch=compute_{architecture},code=sm_{architecture}"]
    digest = hashlib.sha256(" ".join(flags).encode())
    for source in sorted((ROOT / "csrc").rglob("*")):
        if source.suffix in (".cu", ".cuh", ".h"):
            digest.update(source.read_bytes())
    path = CACHE / f"{unit.stem}-{architecture}-{digest.hexdigest()[:16]}.cubin"
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        command = [str(build.nvcc()), *flags, "-cubin", "-o", str(partial), str(unit)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"nvcc does not compile {unit.name}: {done.stderr[:2000]}")
        partial.rename(path)
    return path


# --- launches ---------------------------------------------------------------------------------------------------------


class Launch(NamedTuple):
    kernel: str
    blocks: int
    threads: int  # of a block
    cluster: int
    shared: int


_Listener = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_uint64, ctypes.c_uint, ctypes.c_uint, ctypes.c_uint64)


def launches(call: Callable[[], None], chip: str) -> list[Launch]:
    """What ``call`` launches on a chip."""
    found: list[Launch] = []
    listener = _Listener(lambda name, *numbers: found.append(Launch(name.decode(), *numbers)))
    capability = int(chip.removeprefix("sm_"))
    with emulated.running(emulated.Schedule(0, "early", capability)):
        emulated.library().cuda_emulator_listen(listener)
        try:
            call()
        finally:
            emulated.library().cuda_emulator_listen(None)
    return found


NO_MEMORY = 1 << 40  # an address that is as aligned as an allocation's


def array(*shape: int, dtype: str = "bfloat16") -> View:
    """A dense array with nothing behind it."""
    return dense(NO_MEMORY, CODES[dtype], *shape)


class Case(NamedTuple):
    call: Callable[[], None]
    elements: int  # of the rows
    inputs: int  # arrays of so many elements that are read; 0: matrices
    counts: bool = True  # whether instructions are counted: whole rows of 16-byte vectors


def with_workspace(function: str, *args: Any, **keywords: Any) -> Callable[[], None]:
    def call() -> None:
        listed = getattr(cuda_kernels, f"{function}_workspace", lambda *a, **k: {})(*args, **keywords)
        extra = {"workspace": {name: array(*s, dtype="float64") for name, (s, _) in listed.items()}} if listed else {}
        getattr(cuda_kernels, function)(*args, **keywords, **extra)

    return call


def cases() -> dict[str, Case]:
    found: dict[str, Case] = {}
    for dtype, of in (("bfloat16", ""), ("float32", " fp32")):
        for columns in (1000, 4096, 32768, 131072):
            found |= {f"CUDA {name} {columns}{of}": case for name, case in row_cases(8192, columns, dtype).items()}
    for dtype in ("bfloat16", "float16", "float32", "float64"):
        found |= {f"CUDA {name} {dtype}": case for name, case in linear_cases(8192, 4096, dtype).items()}
    for dtype in ("bfloat16", "float16"):  # few tiles, and so narrow ones
        found |= {f"CUDA {name} small {dtype}": case for name, case in linear_cases(512, 512, dtype).items()}
    return found


def row_cases(rows: int, columns: int, dtype: str) -> dict[str, Case]:
    x, y, z = (array(rows, columns, dtype=dtype) for _ in range(3))
    target, lse, weight = array(rows, dtype="int64"), array(2, rows, dtype="float32"), array(columns, dtype=dtype)
    loss, losses, each = array(dtype=dtype), array(rows, dtype=dtype), LossOptions("none")
    n = rows * columns

    def forward(w: View | None, o: LossOptions, of_loss: View, grad: View | None, counts: bool = True) -> Case:
        call = with_workspace(
            "cross_entropy", x, target, w, o, loss=of_loss, lse=lse, argmax=None, grad=grad, flag=None
        )
        return Case(call, n, 1, counts)

    def softmax(log: bool) -> Case:
        return Case(with_workspace("softmax", x, 1, log, out=y), n, 1)

    def softmax_backward(log: bool) -> Case:
        return Case(with_workspace("softmax_backward", x, y, 1, log, out=z), n, 2)

    backward = with_workspace("cross_entropy_backward", losses, x, target, None, lse, each, grad=y, grad_target=None)
    return {
        "log_softmax": softmax(True),
        "softmax": softmax(False),
        "log_softmax_backward": softmax_backward(True),
        "softmax_backward": softmax_backward(False),
        "cross_entropy": forward(None, LossOptions(), loss, y),
        "cross_entropy loss": forward(None, each, losses, None),
        "cross_entropy smoothed": forward(weight, LossOptions("mean", -100, 0.1, 0.0, 30.0), loss, y, False),
        "cross_entropy_backward": Case(backward, n, 1),
        "nll_loss_backward": Case(
            with_workspace("nll_loss_backward", loss, x, target, None, each, grad=y), n, 0, False
        ),
    }


def linear_cases(rows: int, columns: int, dtype: str) -> dict[str, Case]:
    x, y, pre, grad = (array(rows, columns, dtype=dtype) for _ in range(4))
    w, of_w = (array(columns, columns, dtype=dtype) for _ in range(2))
    b, of_b = (array(columns, dtype=dtype) for _ in range(2))
    forward = with_workspace("linear", x, w, b, "gelu", out=y, pre=pre)
    backward = with_workspace(
        "linear_backward", y, x, w, pre, "gelu", grad_input=grad, grad_weight=of_w, grad_bias=of_b
    )
    n = rows * columns
    return {"linear": Case(forward, n, 0, False), "linear_backward": Case(backward, n, 0, False)}


# --- instructions of a row --------------------------------------------------------------------------------------------

_WIDE = re.compile(r"(LDGSTS|LDG|STG|LDS|STS)\S*\.128")
_NARROW = re.compile(r"(LDG|STG)(?!\S*\.128)")
_MEETING = re.compile(r"SHFL|BAR\.SYNC")


def executed(code: MachineCode, vectors: float) -> float:
    """How many instructions a thread executes that has so many 16-byte vectors of each array: on the shortest way
    through the kernel that goes through every loop over whole vectors, every barrier and every shuffle that it can.

    What only a row's edges need, or a row that does not fit on the chip, is not on that way.
    """
    ins = code.instructions
    loops = [body for body in _innermost(code) if any(_WIDE.match(ins[i].opcode) for i in body)]
    main = [body for body in loops if not any(_NARROW.match(ins[i].opcode) for i in body)]
    aside = {i for body in loops if body not in main for i in body}
    meetings = [i for i in sorted(code.reached) if _MEETING.match(ins[i].opcode) and i not in aside]
    stops = sorted({i for body in main for i in body if _WIDE.match(ins[i].opcode)} | set(meetings))
    total, at = 0.0, 0
    for stop in stops:
        way = _distance(code, at, stop, aside)
        if way is not None:
            total, at = total + way, stop
    total += min(
        (d for i in code.reached if ins[i].opcode == "EXIT" if (d := _distance(code, at, i, aside)) is not None),
        default=0,
    )
    for body in main:
        wide = [i for i in sorted(body) if _WIDE.match(ins[i].opcode)]
        kinds = {ins[i].opcode.split(".")[0]: 0 for i in wide}
        for i in wide:
            kinds[ins[i].opcode.split(".")[0]] += 1
        unrolled = min(kinds.values())
        round_ = sum(
            _distance(code, a, b, set(code.reached) - body) or 0
            for a, b in zip(wide, [*wide[1:], wide[0]], strict=True)
        )
        total += max(0.0, vectors / unrolled - 1) * (round_ or len(body))
    return total


def _innermost(code: MachineCode) -> list[frozenset[int]]:
    found: list[frozenset[int]] = []

    def visit(within: frozenset[int]) -> None:
        for body in machine_code.cycles(code.instructions, within):
            entries = {n for i in within - body for n in machine_code.successors(code.instructions, i) if n in body}
            inner = machine_code.cycles(code.instructions, body - (entries or {min(body)}))
            if inner:
                visit(body - (entries or {min(body)}))
            else:
                found.append(body)

    visit(code.reached)
    return found


def _distance(code: MachineCode, start: int, end: int, without: set[int]) -> int | None:
    """Instructions from one to the other, at least one of them; None: there is no way."""
    seen, todo = {start: 0}, deque([start])
    while todo:
        i = todo.popleft()
        for n in machine_code.successors(code.instructions, i):
            if n == end:
                return seen[i] + 1
            if n not in seen and n not in without:
                seen[n] = seen[i] + 1
                todo.append(n)
    return None


# --- rows of the table ------------------------------------------------------------------------------------------------


def rows(chip: str) -> list[Row]:
    """A row for each kernel that a case launches."""
    found: dict[tuple[str, ...], Row] = {}
    for name, case in cases().items():
        for launch in launches(case.call, chip):
            row = _row(chip, name, case, launch)
            found.setdefault(row.key, row)
    return list(found.values())


def _row(chip: str, name: str, case: Case, launch: Launch) -> Row:
    code = codes(chip)[launch.kernel]
    kernel = (
        launch.kernel.rpartition("cuda::")[2]
        if "<" not in launch.kernel
        else launch.kernel.removeprefix("tilegrad::cuda::")
    )
    warps, counted = launch.threads // 32, case.counts and "vectors" in launch.kernel
    wide = counted or launch.kernel.startswith("tilegrad::cuda::dz_kernel")
    per_element = None
    if counted:
        size = SIZES[CODES["float32" if "fp32" in name else "bfloat16"]]
        elements = case.elements / (launch.blocks * launch.threads)
        per_element = round(executed(code, elements * size / machine_code.WIDE) / elements, 3)
    return Row(
        chip=chip,
        kernel=kernel,
        case=name,
        config=f"blocks={launch.cluster}/row num_warps={warps}" if launch.cluster > 1 else f"num_warps={warps}",
        code=f"{chip} {launch.kernel} {name}",
        contiguous=True,
        warps=warps,
        registers=code.registers,
        spilled=code.spilled,
        shared=launch.shared,
        resident=machine_code.occupancy(chip, warps, code.registers, launch.shared),
        instructions=len(code.reached),
        per_element=per_element,
        loads=machine_code.traffic(code, "load"),
        stores=machine_code.traffic(code, "store"),
        due_loads=machine_code.WIDE * max(1, case.inputs) if wide else 0,
        due_stores=machine_code.WIDE if wide else 0,
        products=int(chip == "sm_90" and "matmul" in launch.kernel and name.endswith("float16")),
        tensor_ops=machine_code.tensor_ops(code),
    )
