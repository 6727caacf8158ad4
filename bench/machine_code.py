"""What a compiled kernel says of itself: registers, spills, instructions, loops, and how many programs a chip holds.

NVIDIA's code is read from a cubin with the `cuobjdump` that Triton ships, AMD's from the assembly that Triton keeps.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

# --- instructions -----------------------------------------------------------------------------------------------------


class Instruction(NamedTuple):
    opcode: str  # with its modifiers: "LDG.E.128", "global_load_dwordx4"
    targets: tuple[int, ...] = ()  # the indices of the instructions that it may jump to
    goes_on: bool = True  # whether the next instruction may follow it


@dataclass(frozen=True)
class MachineCode:
    registers: int  # of a thread; AMD: vector registers, the accumulation ones among them
    spilled: int  # bytes of stack and local memory; AMD: of scratch, and vector registers (scalars go to their lanes)
    instructions: tuple[Instruction, ...]

    @cached_property
    def reached(self) -> frozenset[int]:
        """The instructions that jumps lead to: no padding, and no subroutines, which are detours for rare operands."""
        return _closure(0, partial(successors, self.instructions)) | {0}


def of_cubin(cubin: bytes) -> MachineCode:
    """Read a cubin that holds one kernel.

    Raises:
        RuntimeError: this Triton came without cuobjdump.
    """
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return of_sass(dumped(Path(file.name), "-res-usage", "-sass"))


def dumped(cubin: Path, *options: str) -> str:
    """What cuobjdump prints of a file; RuntimeError as for ``of_cubin``."""
    import triton  # not with this module: it decides at import whether it compiles or interprets

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    if not tool.exists():
        raise RuntimeError(f"triton {triton.__version__} came without cuobjdump ({tool}): install the wheel from PyPI")
    return subprocess.run([tool, *options, cubin], capture_output=True, text=True, check=True).stdout


_SASS = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+\s+)?([A-Z][\w.]*)([^;]*);")


def of_sass(text: str) -> MachineCode:
    """Read what cuobjdump prints with -res-usage and -sass."""
    usage = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", text)
    if usage is None:
        raise ValueError(f"no resource usage in what cuobjdump printed: {text[:200]!r}")
    lines = _SASS.findall(text)
    at = {int(address, 16): i for i, (address, *_) in enumerate(lines)}
    found: list[Instruction] = []
    for _, guard, opcode, operands in lines:
        jump = re.fullmatch(r"(.*\W)0x([0-9a-f]+)\s*", operands) if opcode.startswith(("BRA", "CALL")) else None
        always = not guard and not (jump and jump[1].strip())  # BRA.U UP0, 0x80 has its guard among the operands
        leaves = opcode.startswith(("BRA", "BRX", "EXIT", "RET"))
        found.append(Instruction(opcode, (at[int(jump[2], 16)],) if jump else (), not (leaves and always)))
    # A jump by a table, with which warps go to their parts of the work: to anything that follows a dead end.
    starts = tuple(i + 1 for i, instruction in enumerate(found[:-1]) if not instruction.goes_on)
    found = [i._replace(targets=starts) if i.opcode.startswith("BRX") else i for i in found]
    # The assembler also jumps by CALL, to where no RET follows.
    straight = [i._replace(targets=()) if i.opcode.startswith("CALL") else i for i in found]

    def returns(start: int) -> bool:
        reached = _closure(start, partial(successors, straight)) | {start}
        return any(straight[i].opcode.startswith("RET") for i in reached)

    calls = [i.opcode.startswith("CALL") and any(map(returns, i.targets)) for i in found]
    found = [s if is_call else i for i, s, is_call in zip(found, straight, calls, strict=True)]
    return MachineCode(int(usage[1]), int(usage[2]) + int(usage[3]), tuple(found))


def of_amdgcn(text: str) -> MachineCode:
    """Read AMD's assembly of one kernel."""
    fields = {name: int(value) for name, value in re.findall(r"^ +(?:- )?\.(\w+): +(\d+)$", text, re.MULTILINE)}
    spilled = fields["private_segment_fixed_size"] + fields["vgpr_spill_count"]
    lines: list[tuple[str, str]] = []
    labels: dict[str, int] = {}
    for line in text.partition(".Lfunc_begin0:")[2].partition(".Lfunc_end0:")[0].splitlines():
        if label := re.match(r"(\.L\w+):", line):
            labels[label[1]] = len(lines)
        elif statement := re.match(r"\t([a-z]\w+)\s*([^;]*)", line):
            lines.append((statement[1], statement[2].strip()))
    found = []
    for opcode, operands in lines:
        targets = (labels[operands],) if opcode.startswith(("s_branch", "s_cbranch")) else ()
        found.append(Instruction(opcode, targets, opcode not in ("s_branch", "s_endpgm", "s_setpc_b64")))
    return MachineCode(fields["vgpr_count"], spilled, tuple(found))


def successors(instructions: Sequence[Instruction], i: int) -> list[int]:
    following = [i + 1] if instructions[i].goes_on and i + 1 < len(instructions) else []
    return [*following, *instructions[i].targets]


# --- global memory and tensor cores -----------------------------------------------------------------------------------

WIDE = 16  # bytes

_BYTES = {"256": 32, "128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}  # the modifier; without one: 4
_BYTES |= {"dwordx4": 16, "dwordx3": 12, "dwordx2": 8, "dword": 4, "short": 2, "ushort": 2, "sbyte": 1, "ubyte": 1}
_BYTES |= {"byte": 1}
_BULK = {"UTMALDG": "load", "UTMASTG": "store", "UBLKCP": "load"}
_TENSOR = re.compile(r"(HGMMA|QGMMA|IGMMA|UTC\w*MMA|HMMA|DMMA|IMMA|v_mfma\w*)")


class Access(NamedTuple):
    kind: str  # "load", "store"
    width: int  # bytes of a thread; 0: a bulk copy, which no thread takes part in


def access(opcode: str) -> Access | None:
    """What an instruction moves to or from global memory; atomics, which cannot be wide, are not told of."""
    base, *modifiers = opcode.split(".")
    if base in _BULK:
        return Access(_BULK[base], 0)
    if base in ("LDG", "STG", "LDGSTS"):
        width = next((_BYTES[m] for m in modifiers if m in _BYTES), 4)
        return Access("store" if base == "STG" else "load", width)
    if amd := re.match(r"(?:global|buffer|flat)_(load|store)_(?:lds_)?(dwordx\d|[a-z]+)", opcode):
        return Access(amd[1], _BYTES[amd[2]])
    return None


class Traffic(NamedTuple):
    """What the instructions of a kernel, each counted once, move one way between global memory and the chip."""

    wide: int  # bytes of a thread, in accesses of 16 bytes and more
    narrow: int  # bytes of a thread, in smaller ones
    bulk: int  # copies that no thread takes part in

    @property
    def share(self) -> float | None:
        """The part of a thread's bytes that wide accesses move; None: it moves none itself."""
        return self.wide / (self.wide + self.narrow) if self.wide + self.narrow else None


def traffic(code: MachineCode, kind: str) -> Traffic:
    widths = [a.width for a in _accesses(code, code.reached) if a.kind == kind]
    wide = sum(w for w in widths if w >= WIDE)
    return Traffic(wide, sum(widths) - wide, widths.count(0))


def tensor_ops(code: MachineCode) -> dict[str, int]:
    """How many instructions of each kind go to the tensor cores; AMD's count under "v_mfma"."""
    counts: dict[str, int] = {}
    for i in sorted(code.reached):
        name = code.instructions[i].opcode.partition(".")[0]
        if _TENSOR.fullmatch(name):
            name = "v_mfma" if name.startswith("v_mfma") else name
            counts[name] = counts.get(name, 0) + 1
    return counts


# --- loops ------------------------------------------------------------------------------------------------------------


class Loop(NamedTuple):
    """Code that is repeated."""

    body: frozenset[int]  # the instructions, those of inner loops among them
    load_bytes: int  # that a thread loads from global memory in one round, inner loops aside
    inner: tuple[Loop, ...]

    @property
    def own_length(self) -> int:
        return len(self.body) - sum(len(loop.body) for loop in self.inner)


def loops(code: MachineCode) -> tuple[Loop, ...]:
    """The outermost loops that touch global memory, in order. Others wait for something, and usually run once."""
    return tuple(_loops(code, code.reached))


def _loops(code: MachineCode, within: frozenset[int]) -> Iterator[Loop]:
    """A loop is a strongly connected part of the control flow; without its entry, the loops inside of it are left."""
    for body in sorted(cycles(code.instructions, within), key=min):
        if not any(_accesses(code, body)):
            continue
        entries = {n for i in within - body for n in successors(code.instructions, i) if n in body}
        inner = tuple(_loops(code, body - (entries or {min(body)})))
        own = body.difference(*(loop.body for loop in inner))
        yield Loop(body, sum(a.width for a in _accesses(code, own) if a.kind == "load"), inner)


def cycles(instructions: Sequence[Instruction], within: frozenset[int]) -> list[frozenset[int]]:
    """The strongly connected parts. Each has a jump back, whose instruction leads to all of it and back again."""
    after = {i: [n for n in successors(instructions, i) if n in within] for i in within}
    before: dict[int, list[int]] = {i: [] for i in within}
    for i, following in after.items():
        for n in following:
            before[n].append(i)
    found: list[frozenset[int]] = []
    for i in within:
        jumps_back = any(n <= i for n in after[i])
        if jumps_back and not any(i in body for body in found):
            body = _closure(i, after.__getitem__) & _closure(i, before.__getitem__)
            found += [body] if i in body else []
    return found


def _closure(start: int, neighbours: Callable[[int], Iterable[int]]) -> frozenset[int]:
    """Everything that one or more steps lead to."""
    seen: set[int] = set()
    todo = [start]
    while todo:
        new = [n for n in neighbours(todo.pop()) if n not in seen]
        seen.update(new)
        todo += new
    return frozenset(seen)


def _accesses(code: MachineCode, indices: Iterable[int]) -> Iterator[Access]:
    for i in indices:
        if found := access(code.instructions[i].opcode):
            yield found


# --- occupancy --------------------------------------------------------------------------------------------------------


class Limits(NamedTuple):
    """What a multiprocessor has. Sources: the CUDA programming guide, table "Technical Specifications per Compute
    Capability"; the CDNA 3 instruction set manual and LLVM's AMDGPU backend guide."""

    shared: int  # bytes that one program can have
    shared_total: int  # bytes of all programs
    shared_reserved: int  # bytes that every program costs beyond its own
    warps: int
    program_warps: int  # that one program can have
    programs: int
    registers: int  # that the warps of one partition share, in units of one register for all lanes of a warp
    register_unit: int  # they are given out in multiples of this
    partitions: int = 4
    tensor_memory: int = 0  # columns


_HOPPER = Limits(232448, 233472, 1024, warps=64, program_warps=32, programs=32, registers=512, register_unit=8)
LIMITS = {
    "sm_80": _HOPPER._replace(shared=166912, shared_total=167936),
    "sm_90": _HOPPER,
    "sm_100": _HOPPER._replace(tensor_memory=512),
    "gfx942": Limits(65536, 65536, 0, warps=32, program_warps=16, programs=32, registers=512, register_unit=8),
}


def occupancy(chip: str, warps: int, registers: int, shared: int, tensor_memory: int = 0) -> int:
    """How many programs a multiprocessor holds at once; 0: not even one fits."""
    limits = LIMITS[chip]
    if shared > limits.shared or warps > limits.program_warps:
        return 0
    rounded = -(-max(registers, 1) // limits.register_unit) * limits.register_unit
    resident = min(limits.warps, limits.registers // rounded * limits.partitions)
    bounds = [limits.programs, resident // warps]
    if shared + limits.shared_reserved:
        bounds.append(limits.shared_total // (shared + limits.shared_reserved))
    if tensor_memory:
        bounds.append(limits.tensor_memory // tensor_memory)
    return min(bounds)
