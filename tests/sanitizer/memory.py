"""What the sanitizer knows of memory: where arrays lie, and what has happened to each of their bytes."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

# Of a unit of memory, which is a byte, or as many as any element or access there has.
VALID, INITIALISED, READ_ONLY, OUTPUT = 1, 2, 4, 8
READ, WRITTEN = 16, 32  # in this launch
EVER = 2  # these two, so many bits further on: since the region was made

ROLES = {
    "input": VALID | INITIALISED | READ_ONLY,
    "output": VALID | OUTPUT,  # not initialised, to be written in full
    "inout": VALID | INITIALISED,
    "workspace": VALID,  # not initialised, may be left so
}

# Fills what is not initialised: NaN, or −1. Where something else is found later, the host has written.
POISON = 0xFF

# Kernels get made-up addresses, each region's in the middle of 2^40 bytes of its own: so running past the end of an
# array never ends in another one.
SPACE = 40


@dataclass(frozen=True)
class Extent:
    """Where the elements of an array lie."""

    address: int  # of element (0, …), which need not be the lowest
    itemsize: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # bytes

    @classmethod
    def of(cls, x: Any) -> Extent:
        """The extent of a NumPy array, a torch tensor, or a View."""
        if hasattr(x, "__array_interface__"):
            return cls(x.__array_interface__["data"][0], x.itemsize, x.shape, x.strides)
        strides = x.stride() if hasattr(x, "stride") else x.strides
        return cls(x.data_ptr(), x.dtype.itemsize, tuple(x.shape), tuple(s * x.dtype.itemsize for s in strides))

    @property
    def bounds(self) -> tuple[int, int]:
        """The lowest address, and the one behind the highest."""
        if 0 in self.shape:
            return self.address, self.address
        reach = [(n - 1) * s for n, s in zip(self.shape, self.strides, strict=True)]
        low = self.address + sum(min(0, r) for r in reach)
        return low, self.address + sum(max(0, r) for r in reach) + self.itemsize


class Region:
    """A stretch of memory that holds an array, or several that overlap."""

    def __init__(self, number: int, low: int, high: int, unit: int) -> None:
        self.low, self.high, self.unit = low, high, unit
        self.base = (number << SPACE) + (1 << SPACE - 1) + low % 4096  # for kernels; aligned as the memory is
        self.shift = np.uint64((low - self.base) % 2**64)  # from there to the memory
        self.flags = np.zeros((high - low) // unit, np.uint8)
        self.arrays: list[tuple[str, Any]] = []  # kept alive, so that nothing else comes to lie there
        self.read = self.written = 0  # bytes issued
        memory = {"data": (low, False), "shape": (high - low,), "typestr": "|u1", "version": 3}
        self._bytes = np.asarray(SimpleNamespace(__array_interface__=memory)) if high > low else np.empty(0, np.uint8)
        self.begin()

    @property
    def memory(self) -> np.ndarray:  # (units, bytes of a unit)
        return self._bytes.reshape(-1, self.unit)

    def __str__(self) -> str:
        return " over ".join(dict.fromkeys(f"{role} {x.dtype} {tuple(x.shape)}" for role, x in self.arrays))

    def begin(self) -> None:
        """Forget what the launch before has done, and look for what the host has written since."""
        self.writes: np.ndarray | None = None  # per unit an access in the launch's Order; None: none yet
        self.reads: np.ndarray | None = None
        self.atomics: np.ndarray | None = None
        self.lanes: np.ndarray | None = None  # per unit: the lane of the block that was stored last
        self.flags &= ~np.uint8(READ | WRITTEN)
        pending = np.flatnonzero(self.flags & (VALID | INITIALISED) == VALID)
        if pending.size:
            by_host = (self.memory[pending] != POISON).any(1)
            self.flags[pending[by_host]] |= INITIALISED

    def end(self) -> None:
        """Keep what the launch has read and written."""
        self.flags |= (self.flags & np.uint8(READ | WRITTEN)) << EVER

    def marked(self, bits: int) -> int:
        """How many bytes have all these bits."""
        return self.unit * int(np.count_nonzero(self.flags & bits == bits))

    @property
    def least(self) -> int:
        """Bytes of inputs that were read and of outputs that were written, each once."""
        return self.marked(READ_ONLY | READ << EVER) + self.marked(OUTPUT | WRITTEN << EVER)

    def history(self, name: str) -> np.ndarray:
        """``writes``, ``reads``, ``atomics`` or ``lanes``, made when they are first needed."""
        if getattr(self, name) is None:
            setattr(self, name, np.zeros(len(self.flags), np.int32))
        return getattr(self, name)

    def refine(self, unit: int) -> None:
        """Go on in smaller units."""
        for name in ("flags", "writes", "reads", "atomics", "lanes"):
            if getattr(self, name) is not None:
                setattr(self, name, np.repeat(getattr(self, name), self.unit // unit))
        self.unit = unit

    def take(self, other: Region) -> None:
        """Take over a region that lies in this one, which is new."""
        other.refine(self.unit)
        start = (other.low - self.low) // self.unit
        self.flags[start : start + len(other.flags)] = other.flags
        self.arrays += other.arrays
        self.read, self.written = self.read + other.read, self.written + other.written

    def own(self, array: Any, role: str | None) -> None:
        """Give an array's elements a role; None: inout, where they have none."""
        extent = Extent.of(array)
        if self.low == self.high:
            self.arrays.append((role or "argument", array))
            return
        units = self._units_of(extent, self.flags)
        known = units & VALID != 0
        if role is None:
            if known.all():
                return
            units[~known] = ROLES["inout"]
        else:
            new = np.uint8(ROLES[role])
            both = (units | new) & ~np.uint8(READ_ONLY) | units & new & READ_ONLY  # whoever may write, may
            units[...] = np.where(known, both, new)
            if not new & INITIALISED:
                mine = np.zeros(len(self.flags), bool)
                self._units_of(extent, mine)[...] = True
                self.memory[mine & (self.flags & INITIALISED == 0)] = POISON
        self.arrays.append((role or "argument", array))

    def _units_of(self, extent: Extent, per_unit: np.ndarray) -> np.ndarray:
        """The entries of an array's elements, (*shape, units of an element), of what is kept per unit."""
        first = per_unit[(extent.address - self.low) // self.unit :]
        strides = (*(s // self.unit * per_unit.itemsize for s in extent.strides), per_unit.itemsize)
        return np.lib.stride_tricks.as_strided(first, (*extent.shape, extent.itemsize // self.unit), strides)


class Memory:
    """All the regions there are."""

    def __init__(self) -> None:
        self.regions: dict[int, Region] = {}
        self._made = 0

    def own(self, array: Any, role: str | None) -> Region:
        """The region that an array lies in, with it in that role. Arrays that overlap come into the same one."""
        extent = Extent.of(array)
        low, high = extent.bounds
        known = {number: r for number, r in self.regions.items() if r.low < high and low < r.high}
        region = next((r for r in known.values() if r.low <= low and high <= r.high), None)
        if region is None:
            self._made += 1
            low, high = min([low, *(r.low for r in known.values())]), max([high, *(r.high for r in known.values())])
            region = Region(self._made, low, high, min([extent.itemsize, *(r.unit for r in known.values())]))
            for number in known:
                region.take(self.regions.pop(number))
            self.regions[self._made] = region
        elif region.unit > extent.itemsize:
            region.refine(extent.itemsize)
        region.own(array, role)
        return region

    def address_of(self, array: Any) -> int:
        """The address that kernels are given for an array."""
        region = self.own(array, None)
        return Extent.of(array).address - region.low + region.base

    def at(self, address: int) -> Region | None:
        """The region in whose space a kernel's address is."""
        return self.regions.get(address >> SPACE)
