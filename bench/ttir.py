"""What Triton's IR does with a launch's own numbers: how often its loops run, and which offsets do not fit 32 bits.

The IR is read as text, a line an operation, and every integer in it gets the interval of the values that it can have:
arguments have theirs from the launch, program ids from the grid, everything else from what it is computed from. An
integer that a loop carries along is unknown, and so is what comes of it; unknown values are never complained of.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Interval(NamedTuple):
    low: int
    high: int
    overflow: str = ""  # the operation, at or before this one, whose result can leave its own type


UNKNOWN = None
Value = Interval | None


class Load(NamedTuple):
    elements: int  # of the tensor; 1: a scalar
    itemsize: int

    def bytes_of_thread(self, threads: int) -> float:
        """What there are too few elements of, several threads load."""
        return max(1.0, self.elements / threads) * self.itemsize


@dataclass
class Loop:
    rounds: float | None  # on the average over the programs; None: depends on what is only known at run time
    loads: list[Load] = field(default_factory=list)  # through pointers, in one round, inner loops aside
    moves_memory: bool = False
    inner: list[Loop] = field(default_factory=list)


class Access(NamedTuple):
    kind: str  # "load", "store"
    bytes: int  # of the tensor


@dataclass(frozen=True)
class Reading:
    accesses: list[Access] = field(default_factory=list)  # through pointers, gathers and scatters aside
    products: int = 0  # of matrices of 16 bits, or of tf32: those that are made for tensor cores
    loops: list[Loop] = field(default_factory=list)  # the outermost ones that move memory, in order
    overflows: list[str] = field(default_factory=list)  # what makes an address of an overflowing 32-bit number


_LOCATION = re.compile(r" loc\((?:[^()]|\([^()]*\))*\)")


def read(text: str, arguments: Mapping[str, list[Any]], grid: tuple[int, ...]) -> Reading:
    """Read the TTIR of a kernel launched with ``arguments``: for each parameter that is still one at run time, the
    values that make it up, in order; what is not an int is unknown."""
    lines = [_LOCATION.sub("", line).strip() for line in text.splitlines()]
    reader = _Reader(_parameters(text, arguments), (*grid, 1, 1)[:3])
    reader.block(iter(lines))
    return Reading(reader.accesses, reader.products, _working(reader.loops), reader.overflows)


def _parameters(text: str, arguments: Mapping[str, list[Any]]) -> dict[str, Value]:
    """The values under the IR's names. A tuple or descriptor becomes several parameters: x, x_3 or x.0, x.1, which
    only their locations tell apart from parameters that have such a name."""
    header = next(line for line in text.splitlines() if "tt.func public" in line)
    left = {name: list(values) for name, values in arguments.items()}
    found: dict[str, Value] = {}
    for name, location in re.findall(r'(%[\w.]+): [^%]*? loc\("(\w+)[^"]*"', header):
        value = left[location].pop(0)
        found[name] = Interval(value, value) if isinstance(value, int) else UNKNOWN
    return found


def _working(loops: list[Loop]) -> list[Loop]:
    for loop in loops:
        loop.inner = _working(loop.inner)
    return [loop for loop in loops if loop.moves_memory or loop.inner]


def _rounds(start: Interval, stop: Interval, step: Interval) -> float | None:
    if stop.high >= 2**31 - 1:  # a number from memory
        return None
    length = max(0, stop.high - start.low)
    if start.high - start.low + 1 == step.low:  # the programs take turns: between them, each number comes once
        return length / step.low
    return -(-length // step.low)


class _Reader:
    def __init__(self, values: dict[str, Value], grid: tuple[int, ...]) -> None:
        self.values, self.grid = values, grid
        self.loops: list[Loop] = []
        self.overflows: list[str] = []
        self.accesses: list[Access] = []
        self.products = 0
        self._open: list[Loop] = []  # the loops around the current line, the innermost last
        self._loaded: set[str] = set()  # numbers from memory, and what comes of them: as addresses, they scatter
        self._drawn: set[str] = set()  # what comes of atomics: it differs from program to program
        self._accessed: set[tuple[str, str]] = set()  # by what, through which pointer: the compiler may do it once
        self._lone = 0  # how many branches around the current line hang on such a number: one program takes them

    def block(self, lines: Iterator[str]) -> None:
        """Everything up to the brace that closes the current block."""
        for line in lines:
            if line.startswith("}") and not line.endswith("{"):
                return
            if line.startswith("}"):  # "} else {", "} do {" close a block and open another
                continue
            if line.endswith("{"):
                self._opening(line, lines)
            else:
                self._operation(line)

    def _opening(self, line: str, lines: Iterator[str]) -> None:
        if "scf.for" not in line and "scf.while" not in line:  # a function, an if, the region of a reduction
            lone = "scf.if" in line and bool(self._drawn.intersection(_names(line)))
            self._lone += lone
            self.block(lines)
            self._lone -= lone
            return
        loop = Loop(0 if self._lone else None)
        if header := re.search(r"scf\.for (?:unsigned )?(%\S+) = (%\S+) to (%\S+) step (%\S+)", line):
            variable, *bounds = header.groups()
            start, stop, step = (self.values.get(name) for name in bounds)
            if start and stop and step and step.low > 0:
                loop.rounds = 0 if self._lone else _rounds(start, stop, step)
                self.values[variable] = Interval(start.low, max(start.low, stop.high - 1))
        (self._open[-1].inner if self._open else self.loops).append(loop)
        self._open.append(loop)
        self.block(lines)
        self._open.pop()

    def _operation(self, line: str) -> None:
        operation = re.match(r'(?:(%[\w.]+)(?::\d+)? = )?"?([a-z_]+\.[\w.]+)"? ?(.*)', line)
        if operation is None:
            return
        result, name, rest = operation.groups()
        names = _names(rest)
        if name == "tt.dot":
            self.products += bool(re.search(r"inputPrecision = tf32|: tensor<[\dx]+x(?:bf16|f16)>", rest))
        if name.startswith(("tt.load", "tt.store", "tt.descriptor", "tt.atomic")):
            self._moves(name, rest, names[0])
        if name == "tt.addptr":
            offset = self.values.get(names[1])
            if offset and offset.overflow:
                self.overflows.append(f"{offset.overflow} feeds {line}")
        if result is not None:
            self.values[result] = self._value(name, rest, [self.values.get(n) for n in names], line)
            if "atomic" in name or self._drawn.intersection(names):
                self._drawn.add(result)
            if (name == "tt.load" or self._loaded.intersection(names)) and _differs_along_rows(rest):
                self._loaded.add(result)

    def _moves(self, name: str, rest: str, pointer: str) -> None:
        if self._open:
            self._open[-1].moves_memory = True
        of = re.search(r": (?:tensor<([\dx]+)x)?!tt\.ptr<[a-z]+(\d+)>", rest)
        if name not in ("tt.load", "tt.store") or of is None:
            return
        load = Load(math.prod(map(int, (of[1] or "1").split("x"))), max(1, int(of[2]) // 8))
        if pointer not in self._loaded and (name, pointer) not in self._accessed:
            self._accessed.add((name, pointer))
            self.accesses.append(Access(name.removeprefix("tt."), load.elements * load.itemsize))
        if self._open and name == "tt.load":
            self._open[-1].loads.append(load)

    def _value(self, name: str, rest: str, inputs: list[Value], line: str) -> Value:
        bits = re.search(r"(?:\b|x)i(\d+)>?$", rest)
        if bits is None:
            return UNKNOWN
        limit = 1 << (int(bits[1]) - 1)
        if name == "arith.constant":
            number = re.match(r"(?:dense<)?(-?\d+)>? :", rest)
            return Interval(int(number[1]), int(number[1])) if number else UNKNOWN
        if name == "tt.get_program_id":
            return Interval(0, self.grid["xyz".index(rest[0])] - 1)
        if name == "tt.get_num_programs":
            return Interval(*[self.grid["xyz".index(rest[0])]] * 2)
        if name == "tt.make_range":
            end, start = re.findall(r"(?:end|start) = (\d+)", rest)
            return Interval(int(start), int(end) - 1)
        if name in ("tt.load", "tt.atomic_rmw", "tt.atomic_cas"):
            return Interval(-limit, limit - 1)
        if name == "arith.select":
            inputs = inputs[1:]  # whatever the condition is
        if name not in _ARITHMETIC or UNKNOWN in inputs or not inputs:
            return UNKNOWN
        known = [value for value in inputs if value]
        low, high = _ARITHMETIC[name](*known)
        overflow = next((value.overflow for value in known if value.overflow), "")
        if not -limit <= low <= high < limit:
            # A number from memory can be anything, but whoever adds to it knows what it is: only products are suspect.
            anything = any(value.high - value.low >= 2 * limit - 1 for value in known)
            overflow = overflow or ("" if anything and name in ("arith.addi", "arith.subi") else line)
            low, high = -limit, limit - 1
        return Interval(low, high, overflow)


def _differs_along_rows(rest: str) -> bool:
    """Whether an operation's result has several elements in its last dimension, as (rows, 1) has not."""
    shape = re.findall(r"tensor<((?:\d+x)+)", rest)
    return bool(shape) and not shape[-1].endswith("x1x") and shape[-1] != "1x"


def _names(text: str) -> list[str]:
    return re.findall(r"%[\w.]+(?:#\d+)?", text)


def _corners(operation: Callable[[int, int], int]) -> Callable[[Interval, Interval], tuple[int, int]]:
    """For an operation whose extremes over two intervals lie at their ends."""

    def extremes(a: Interval, b: Interval) -> tuple[int, int]:
        found = [operation(x, y) for x in a[:2] for y in b[:2]]
        return min(found), max(found)

    return extremes


def _quotient(a: Interval, b: Interval) -> tuple[int, int]:
    if b.low <= 0 <= b.high:  # by zero is undefined; by ±1 is the furthest that it can get
        furthest = max(abs(a.low), abs(a.high))
        return -furthest, furthest
    return _corners(lambda x, y: abs(x) // abs(y) * (1 if x * y >= 0 else -1))(a, b)  # rounds towards zero


def _remainder(a: Interval, b: Interval) -> tuple[int, int]:
    bound = max(abs(b.low), abs(b.high)) - 1
    return max(a.low, -bound) if a.low < 0 else 0, min(a.high, bound) if a.high > 0 else 0


def _same(a: Interval, *_: Interval) -> tuple[int, int]:
    return a.low, a.high


def _either(a: Interval, b: Interval) -> tuple[int, int]:
    return min(a.low, b.low), max(a.high, b.high)


_ARITHMETIC: dict[str, Callable[..., tuple[int, int]]] = {
    "arith.addi": _corners(lambda x, y: x + y),
    "arith.subi": _corners(lambda x, y: x - y),
    "arith.muli": _corners(lambda x, y: x * y),
    "arith.divsi": _quotient,
    "arith.remsi": _remainder,
    "arith.minsi": _corners(min),
    "arith.maxsi": _corners(max),
    "arith.select": _either,
    "arith.extsi": _same,
    "arith.trunci": _same,
    "tt.splat": _same,
    "tt.broadcast": _same,
    "tt.expand_dims": _same,
    "tt.reshape": _same,
}
