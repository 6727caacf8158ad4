"""A launch under the sanitizer: every memory instruction of every program is counted and judged."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from triton.runtime import interpreter
from triton.runtime.interpreter import TensorHandle

from .arithmetic import Builder
from .interpreter import INTERPRETED, Call
from .memory import INITIALISED, POISON, READ, READ_ONLY, SPACE, VALID, WRITTEN, Memory, Region
from .order import Order

SECTOR = 32  # bytes: the least that a GPU's caches move


class OutOfBounds(IndexError):
    """An access outside of every array."""


class Fault(NamedTuple):
    kind: str
    kernel: str
    program: int | None  # the first, counted along the last axis of the grid first
    detail: str

    def __str__(self) -> str:
        where = self.kernel if self.program is None else f"{self.kernel}, program {self.program}"
        return f"{self.kind} in {where}: {self.detail}"


@dataclass
class Launch:
    """What a launch did, in bytes. An atomic both reads and writes."""

    name: str  # of the kernel
    grid: tuple[int, int, int]
    constants: dict[str, Any]
    options: dict[str, Any]
    read: int = 0  # by all lanes that are not masked off
    written: int = 0
    sectors_read: int = 0  # in whole sectors, each counted once for every instruction of a program
    sectors_written: int = 0
    least_read: int = 0  # each byte counted once
    least_written: int = 0
    flops: int = 0  # of tl.dot


# For each kind of access, which earlier ones it has to be in order with.
AGAINST = {"load": ("writes", "atomics"), "store": ("writes", "reads", "atomics"), "atomic": ("writes", "reads")}


class Access(NamedTuple):
    """A memory instruction of a program, without the lanes that are masked off."""

    kind: str  # "load", "store" or "atomic"
    addresses: np.ndarray
    low: int
    high: int  # the last byte, plus 1
    is_run: bool  # the addresses are those of one element after the other
    itemsize: int
    lanes: np.ndarray  # positions in the block
    block: tuple[int, ...]
    values: np.ndarray | None  # what is stored, by position in the block

    @property
    def size(self) -> int:
        return math.prod(self.block)

    @property
    def stored(self) -> np.ndarray:  # (size, itemsize)
        return np.ascontiguousarray(self.values).view(np.uint8).reshape(self.size, self.itemsize)


class Execution:
    """A launch under way. ``note`` takes its faults, each with the line of the kernel."""

    def __init__(self, call: Call, memory: Memory, note: Callable[[Fault, str], None]) -> None:
        self.launch = Launch(call.kernel.fn.__name__, call.grid, call.constants, call.options)
        self._call, self._memory, self._note = call, memory, note
        self._order = Order(call.programs)

    def run(self, programs: np.ndarray) -> None:
        """Run the programs, one after the other."""
        for array in self._call.arrays():
            self._memory.own(array, None)
        for region in self._memory.regions.values():
            region.begin()
        WATCHED.execution = self
        try:
            self._call.interpret(WATCHED, self._memory.address_of, programs, self._begin)
        finally:
            del WATCHED.execution
        for region in self._memory.regions.values():
            self.launch.least_read += region.marked(READ)
            self.launch.least_written += region.marked(WRITTEN)
            region.end()

    def _begin(self, program: int) -> None:
        self._program = program
        self._order.begin(program)

    def barrier(self) -> None:
        self._order.barrier()

    def synchronize(self, pointers: np.ndarray, mask: np.ndarray, sem: Any) -> None:
        """An atomic orders programs if it is a scalar's."""
        if pointers.size == 1 and mask.all():
            self._order.synchronize(int(pointers.item()), "ACQ" in sem.name, "REL" in sem.name)

    def fault(self, kind: str, detail: str) -> Fault:
        frame = sys._getframe()
        while INTERPRETED not in frame.f_globals:
            frame = frame.f_back
        line = f"{frame.f_code.co_filename}:{frame.f_lineno}"
        found = Fault(kind, self.launch.name, self._program, f"{line}: {detail}")
        self._note(found, line)
        return found

    # --- accesses

    def access(
        self, kind: str, pointers: TensorHandle, mask: np.ndarray, itemsize: int, values: np.ndarray | None = None
    ) -> TensorHandle:
        """Count and judge an instruction. Returns its pointers, to where the memory really is."""
        shape = pointers.data.shape
        addresses = pointers.data.reshape(-1).view(np.int64)
        lanes = np.arange(addresses.size)
        if not mask.all():
            lanes = np.flatnonzero(mask)
            addresses = addresses[lanes]
        if not addresses.size:
            return pointers
        low, high = int(addresses[0]), int(addresses[-1])
        is_run = high - low == (addresses.size - 1) * itemsize and bool((np.diff(addresses) == itemsize).all())
        if not is_run:
            low, high = int(addresses.min()), int(addresses.max())
        whole = Access(kind, addresses, low, high + itemsize, is_run, itemsize, lanes, shape, values)
        if low >> SPACE == high >> SPACE:
            return TensorHandle(pointers.data + self._check(whole).shift, pointers.dtype)
        real = pointers.data.flatten()
        for space in np.unique(addresses >> SPACE):  # one instruction on several arrays
            these = addresses >> SPACE == space
            there = addresses[these]
            low, high = int(there.min()), int(there.max()) + itemsize
            part = whole._replace(addresses=there, low=low, high=high, is_run=False, lanes=lanes[these])
            real[part.lanes] += self._check(part).shift
        return TensorHandle(real.reshape(shape), pointers.dtype)

    def _check(self, access: Access) -> Region:
        """Count and judge accesses that are all to one region, which is returned."""
        region = self._memory.at(access.low)
        if region is None or access.low < region.base or access.high > region.base + region.high - region.low:
            raise OutOfBounds(str(self._out_of_bounds(access, region)))
        if access.itemsize < region.unit:
            region.refine(access.itemsize)
        parts = access.itemsize // region.unit
        if access.is_run:
            where: Any = slice((access.low - region.base) // region.unit, (access.high - region.base) // region.unit)
        else:
            where = (access.addresses - region.base) // region.unit
            if parts > 1:
                where = (where[:, None] + np.arange(parts)).reshape(-1)
        self._count(access, region)
        if not self._judge(access, region, where) & READ_ONLY:
            self._judge_order(access, region, where, np.repeat(access.lanes, parts) if parts > 1 else access.lanes)
        return region

    def _count(self, access: Access, region: Region) -> None:
        launch, issued = self.launch, access.addresses.size * access.itemsize
        if access.is_run:
            sectors = (access.high - 1) // SECTOR - access.low // SECTOR + 1
        else:
            numbers = access.addresses // SECTOR
            steps = np.diff(numbers)
            sectors = 1 + int(np.count_nonzero(steps)) if (steps >= 0).all() else np.unique(numbers).size
        if access.kind != "store":
            launch.read += issued
            launch.sectors_read += sectors * SECTOR
            region.read += issued
        if access.kind != "load":
            launch.written += issued
            launch.sectors_written += sectors * SECTOR
            region.written += issued

    def _judge(self, access: Access, region: Region, where: Any) -> int:
        """What each byte may be used for. Returns the flags that all of them have."""
        kind, flags = access.kind, region.flags[where]
        every, some = int(np.bitwise_and.reduce(flags)), int(np.bitwise_or.reduce(flags))
        if not every & VALID:
            self.fault("padding", f"a {kind} between the elements of {region}")
        elif not every & INITIALISED and kind != "store":
            self.fault("uninitialised-read", f"a {kind} in {region}")
        if some & READ_ONLY and kind != "load":
            self.fault("write-to-input", f"a {kind} in {region}")
        marks = (READ if kind != "store" else 0) | (WRITTEN | INITIALISED if kind != "load" else 0)
        if ~every & marks:
            region.flags[where] = flags | np.uint8(marks)
        return every

    def _judge_order(self, access: Access, region: Region, where: Any, lanes: np.ndarray) -> None:
        """What programs, and the threads of this one, touch in no order. ``lanes``: of each unit."""
        kind, order = access.kind, self._order
        earlier = {name: getattr(region, name)[where] for name in AGAINST[kind] if getattr(region, name) is not None}
        clashes = {name: order.unordered(accesses) for name, accesses in earlier.items()}
        unordered_stores = clashes.get("writes", {})
        moved = self._moved(access, region, where, lanes)
        if kind == "store" and (moved is not None or unordered_stores):
            # To store what is there already changes nothing: several programs may set the same flag.
            changed = (region.memory[where] != self._stored_units(access, region, lanes)).any(1)
            moved = None if moved is None else moved & changed
            if not changed[np.isin(earlier["writes"], list(unordered_stores))].any():
                del clashes["writes"]
        for name, programs in clashes.items():
            for program in programs.values():
                self.fault("race", f"a {kind} in {region}, in no order with {name} by program {program}")
        if moved is not None and moved.any():
            self.fault("missing-barrier", f"a {kind} in {region} where another thread has stored")
        if kind == "store":
            order.record(region.history("writes"), where, chain=bool(unordered_stores), block=access.block)
            region.history("lanes")[where] = lanes
            if not access.is_run:
                last = region.lanes[where]
                if (access.stored[last[last != lanes]] != access.stored[lanes[last != lanes]]).any():
                    self.fault("duplicate-store", f"two values for one element of {region}")
        elif kind == "load":
            order.record(region.history("reads"), where, chain=True)
        else:
            order.record(region.history("atomics"), where, chain=True, scalar_atomic=access.size == 1)

    def _moved(self, access: Access, region: Region, where: Any, lanes: np.ndarray) -> np.ndarray | None:
        """Where, since the last barrier, another thread of this program has stored; None: nowhere.

        The thread that has stored a lane is the one that touches the same lane of a block of the same shape, except
        that of a block with fewer lanes than threads all the threads load copies, and only some of them store.
        """
        own = {} if region.writes is None else self._order.of_now(region.writes[where])
        if not own:
            return None
        moved = np.zeros(len(lanes), bool)
        for number, block in own.items():
            alike = block == access.block and (access.kind != "load" or access.size >= self._call.threads)
            moved |= (region.writes[where] == number) & ((region.lanes[where] != lanes) | (not alike))
        return moved

    @staticmethod
    def _stored_units(access: Access, region: Region, lanes: np.ndarray) -> np.ndarray:
        """What a store writes to each unit, (units, bytes)."""
        parts = access.itemsize // region.unit
        part = np.tile(np.arange(parts), len(lanes) // parts)
        return access.stored.reshape(access.size, parts, region.unit)[lanes, part]

    def _out_of_bounds(self, access: Access, region: Region | None) -> Fault:
        count, what = access.addresses.size, "a pointer to no array"
        if region is not None:
            offsets, size = access.addresses - region.base, region.high - region.low
            offsets = offsets[(offsets < 0) | (offsets + access.itemsize > size)]
            count, what = offsets.size, f"byte {offsets[0]} of the {size} of {region}"
        return self.fault("out-of-bounds", f"a {access.kind} by {count} lanes, the first at {what}")


class _Watched(Builder):
    """A builder whose memory operations go by the launch under way."""

    execution: Execution

    def create_masked_load(
        self, ptrs: TensorHandle, mask: Any, other: TensorHandle | None, *rest: Any, **named: Any
    ) -> TensorHandle:
        enabled, dtype = np.asarray(mask.data), interpreter._get_np_dtype(ptrs.get_element_ty())
        if other is None and not enabled.all():  # these lanes are undefined, not 0
            poison = np.frombuffer(bytes([POISON]) * dtype.itemsize, dtype).item()
            other = TensorHandle(np.full(ptrs.data.shape, poison, dtype), ptrs.get_element_ty())
        real = self.execution.access("load", ptrs, enabled, dtype.itemsize)
        return super().create_masked_load(real, mask, other, *rest, **named)

    def create_masked_store(self, ptrs: TensorHandle, value: TensorHandle, mask: Any, *rest: Any) -> None:
        real = self.execution.access("store", ptrs, np.asarray(mask.data), value.data.itemsize, value.data)
        super().create_masked_store(real, value, mask, *rest)

    def create_atomic_rmw(
        self, op: Any, ptr: TensorHandle, val: TensorHandle, mask: TensorHandle, sem: Any, scope: Any
    ) -> TensorHandle:
        real = self.execution.access("atomic", ptr, mask.data, val.data.itemsize)
        self.execution.synchronize(ptr.data, mask.data, sem)
        return super().create_atomic_rmw(op, real, val, mask, sem, scope)

    def create_atomic_cas(
        self, ptr: TensorHandle, cmp: TensorHandle, val: TensorHandle, sem: Any, scope: Any
    ) -> TensorHandle:
        mask = np.ones(ptr.data.shape, bool)
        real = self.execution.access("atomic", ptr, mask, val.data.itemsize)
        self.execution.synchronize(ptr.data, mask, sem)
        return super().create_atomic_cas(real, cmp, val, sem, scope)

    def create_barrier(self) -> None:
        self.execution.barrier()

    def create_dot(self, a: TensorHandle, b: TensorHandle, d: TensorHandle, *rest: Any) -> TensorHandle:
        self.execution.launch.flops += 2 * a.data.size * b.data.shape[-1]
        return super().create_dot(a, b, d, *rest)

    def create_add(self, lhs: TensorHandle, rhs: TensorHandle) -> TensorHandle:
        return self._in_32_bits(np.add, lhs, rhs)

    def create_sub(self, lhs: TensorHandle, rhs: TensorHandle) -> TensorHandle:
        return self._in_32_bits(np.subtract, lhs, rhs)

    def create_mul(self, lhs: TensorHandle, rhs: TensorHandle) -> TensorHandle:
        return self._in_32_bits(np.multiply, lhs, rhs)

    def _in_32_bits(self, op: np.ufunc, lhs: TensorHandle, rhs: TensorHandle) -> TensorHandle:
        made = self.binary_op(lhs, rhs, op)
        if made.data.dtype == np.int32 and (op(lhs.data, rhs.data, dtype=np.int64) != made.data).any():
            self.execution.fault("overflow", f"{op.__name__} beyond 32 bits")
        return made


WATCHED = _Watched()  # one for all, since Triton's language is bound to it
