"""Compiles what the launchers of tilegrad.kernels launch, for chips that are not there, and reads what came out.

Nothing about a kernel is written down twice: its launcher runs as it is, on views of no memory, told that it is on a
given chip. What it would have launched is compiled by Triton's own front door, for that chip.

Import this in a process that Triton is to compile in: it decides at import whether kernels are interpreted.
"""

from __future__ import annotations

import importlib
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import IO, Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import JITFunction
from triton.tools.tensor_descriptor import TensorDescriptor

from . import machine_code, ttir
from .machine_code import Loop, MachineCode
from .rules import Row

tuning = importlib.import_module("tilegrad.kernels.tuning")
launching = importlib.import_module("tilegrad.kernels.launch")  # the package may give the name to the function inside

MULTIPROCESSORS = {"sm_80": 108, "sm_90": 132, "sm_100": 148, "gfx942": 304}
NO_MEMORY = 1 << 40  # an address that is as aligned as an allocation's


def array(*shape: int, dtype: str = "bfloat16", strides: tuple[int, ...] | None = None, offset: int = 0) -> Any:
    """A View of no memory: contiguous, unless strides (in elements) are given; ``offset`` elements past alignment."""
    if strides is None:
        strides = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
    kind = launching.DType(dtype)
    return launching.View(NO_MEMORY + offset * kind.itemsize, kind, shape, strides, None)


# --- from a launcher to launches --------------------------------------------------------------------------------------


class Case(NamedTuple):
    call: Callable[[], None]  # of a launcher
    elements: int  # that instructions are counted per
    contiguous: bool = True
    tuned: bool = True  # with the rows that tuning may choose, too; else another case has the same kernels with them
    chips: tuple[str, ...] = tuple(MULTIPROCESSORS)


class Launch(NamedTuple):
    kernel: JITFunction
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    constants: dict[str, Any]  # and options

    @property
    def config(self) -> str:
        """The constants that are numbers. What is true or false, or a name, is up to the case, not to a table."""
        return " ".join(f"{name}={value}" for name, value in sorted(self.constants.items()) if type(value) is int)


def launches(call: Callable[[], None], chip: str) -> list[Launch]:
    """What ``call`` launches on a chip.

    The launchers are told that they are interpreted, where a launch needs no device; since the kernels are compiled
    ones all the same, it ends in Triton's own entry, which is made to take notes.
    """
    taken: list[Launch] = []

    def run(kernel: JITFunction, *args: Any, grid: tuple[int, ...], warmup: bool, **constants: Any) -> None:
        taken.append(Launch(kernel, grid, args, constants))

    stand_in = launching.Chip(chip, MULTIPROCESSORS[chip])
    with triton.knobs.runtime.scope(), _set(JITFunction, "run", run), _set(launching, "INTERPRETED", stand_in):
        triton.knobs.runtime.interpret = True
        call()
    return taken


def shipped(case: Case, chip: str) -> Iterator[list[Launch]]:
    """What a case launches with the rows of the tables; then, for each row that tuning may put in place of one, with
    that."""
    with tuning.asked(chip) as keys:
        yield launches(case.call, chip)
    for key in keys if case.tuned else ():
        for row in tuning.candidates(chip, key)[1:]:
            with tuning.using(chip, {key: row}):
                yield launches(case.call, chip)


def chip_now() -> Any:
    """The chip that launchers are told of; inside ``launches`` only."""
    return launching.INTERPRETED


@contextmanager
def _set(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


# --- from a launch to code --------------------------------------------------------------------------------------------


class _AbsentDevice:
    """The part of a Triton driver that compiling asks. A kernel keeps its code by device, so a chip is its own."""

    def __init__(self, chip: str) -> None:
        self.chip = chip

    def get_current_device(self) -> str:
        return self.chip

    def get_current_stream(self, device: str) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        if self.chip.startswith("sm_"):
            return GPUTarget("cuda", int(self.chip.removeprefix("sm_")), 32)
        return GPUTarget("hip", self.chip, 64)


class Failure(Exception):
    """Triton did not compile a kernel; some of its words about why."""


def compiled(launch: Launch, chip: str) -> Any:
    """Triton's CompiledKernel.

    Raises:
        Failure: there is none.
    """
    triton.runtime.driver.set_active(_AbsentDevice(chip))
    with tempfile.TemporaryFile() as said, _stderr_to(said):
        try:
            return launch.kernel.run(*launch.args, grid=launch.grid, warmup=True, **launch.constants)
        except Exception as error:
            said.seek(0)
            words = said.read(400).decode(errors="replace").strip() or str(error)[-400:]
            raise Failure(f"{type(error).__name__}: {words}") from error


@contextmanager
def _stderr_to(file: IO[bytes]) -> Iterator[None]:
    """The compiler writes all of the IR to the process's stderr where it fails."""
    sys.stderr.flush()
    before = os.dup(2)
    os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(before, 2)
        os.close(before)


_codes: dict[str, MachineCode] = {}


def code_of(kernel: Any) -> MachineCode:
    name = kernel.metadata.hash
    if name not in _codes:
        cubin = kernel.asm.get("cubin")
        _codes[name] = machine_code.of_amdgcn(kernel.asm["amdgcn"]) if cubin is None else machine_code.of_cubin(cubin)
    return _codes[name]


def reading_of(kernel: Any, launch: Launch) -> ttir.Reading:
    if "ttir" not in kernel.asm:  # Gluon begins a level below: what it does is written in the kernel
        return ttir.Reading(products=kernel.asm["ttgir"].count("warp_group_dot "))
    given = dict(zip(kernel.src.signature, launch.args, strict=False))
    arguments = {name: list(_leaves(kernel.src.signature[name], value)) for name, value in given.items()}
    return ttir.read(kernel.asm["ttir"], arguments, launch.grid)


def _leaves(kind: Any, value: Any) -> Iterator[Any]:
    """The values of the parameters that Triton makes of one argument: none of what became a constant."""
    if isinstance(kind, tuple):
        for k, v in zip(kind, value, strict=True):
            yield from _leaves(k, v)
    elif isinstance(value, TensorDescriptor):
        yield from (None, *value.shape, *value.strides)
    elif kind != "constexpr":
        yield value


# --- from code to figures ---------------------------------------------------------------------------------------------


def rows_of(name: str, case: Case, chip: str) -> list[Row]:
    """A row for each kernel and configuration that a case launches; launches of the same code are one row."""
    found: dict[str, Row] = {}
    for number, run in enumerate(shipped(case, chip)):
        programs: dict[str, int] = {}
        new: dict[str, tuple[Launch, Any]] = {}
        for launch in run:
            try:
                kernel = compiled(launch, chip)
            except Failure as error:
                code = f"{chip} {launch.kernel.__name__} {launch.config}"
                found[code] = Row(chip, launch.kernel.__name__, name, launch.config, code, failure=str(error))
                continue
            code = kernel.metadata.hash
            programs[code] = programs.get(code, 0) + math.prod(launch.grid)
            if code not in found:
                new.setdefault(code, (launch, kernel))
        for code, (launch, kernel) in new.items():
            row = _row(name, case, launch, kernel, chip, case.elements / programs[code])
            found[code] = _numbered(row._replace(alternative=number > 0), found.values())
    return list(found.values())


def _numbered(row: Row, others: Iterable[Row]) -> Row:
    """With a number, if its name is taken: its code differs in what is no number, or in what divides an argument."""
    taken = {other.key for other in others}
    name, number = row.config, 1
    while row.key in taken:
        number += 1
        row = row._replace(config=f"{name} #{number}")
    return row


def _row(name: str, case: Case, launch: Launch, kernel: Any, chip: str, elements_of_program: float) -> Row:
    code, reading, about = code_of(kernel), reading_of(kernel, launch), kernel.metadata
    threads = about.num_warps * about.warp_size
    steps = executed(code, reading.loops, threads)
    large = [access for access in reading.accesses if access.bytes >= threads * machine_code.WIDE]
    tensor_memory = getattr(about, "tmem_size", None) or 0
    return Row(
        chip=chip,
        kernel=launch.kernel.__name__,
        case=name,
        config=launch.config,
        code=about.hash,
        contiguous=case.contiguous,
        warps=about.num_warps,
        registers=code.registers,
        spilled=code.spilled,
        shared=about.shared,
        resident=machine_code.occupancy(chip, about.num_warps, code.registers, about.shared, tensor_memory),
        instructions=len(code.reached),
        per_element=None if steps is None else round(steps * threads / elements_of_program, 3),
        loads=machine_code.traffic(code, "load"),
        stores=machine_code.traffic(code, "store"),
        due_loads=sum(access.bytes for access in large if access.kind == "load") // threads,
        due_stores=sum(access.bytes for access in large if access.kind == "store") // threads,
        products=reading.products,
        tensor_ops=machine_code.tensor_ops(code),
    )


def executed(code: MachineCode, loops: list[ttir.Loop], threads: int) -> float | None:
    """How many instructions a thread executes, if it takes every branch that is not a loop.

    The loops of the machine code are those of the IR, in the same order and nesting, and run as often; one that the
    compiler unrolled loads as many times more in a round as it runs fewer rounds. None if they do not correspond (a
    software pipeline that fuses two loops), or if how often one runs depends on data.
    """
    found = machine_code.loops(code)
    inside = _executed(found, loops, threads)
    return None if inside is None else len(code.reached) - sum(len(loop.body) for loop in found) + inside


def _executed(found: tuple[Loop, ...], loops: list[ttir.Loop], threads: int) -> float | None:
    if len(found) != len(loops):
        return None
    total = 0.0
    for machine, source in zip(found, loops, strict=True):
        inner = _executed(machine.inner, source.inner, threads)
        if inner is None or source.rounds is None:
            return None
        once = sum(load.bytes_of_thread(threads) for load in source.loads)
        unrolled = max(1, round(machine.load_bytes / once)) if once else 1
        total += source.rounds * (machine.own_length / unrolled + inner)
    return total
