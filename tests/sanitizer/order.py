"""Which accesses of a launch come before which: the order that atomics make between programs, and barriers within."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class _Access(NamedTuple):
    earlier: int  # another access to the same memory, to be judged with this one; 0: none
    program: int
    stamp: int
    block: tuple[int, ...]  # the shape of what was stored


class Order:
    """Vector clocks over the programs of a launch (Lamport 1978, Mattern 1989).

    Barriers and scalar atomics divide a program into epochs: the result of a scalar atomic goes to all threads across a
    barrier. What a program does in epoch e is stamped 2e + 1, its scalar atomics 2e. A scalar atomic that releases
    publishes all stamps up to 2e, that is what came before the last barrier: Triton 3.6 has the one thread that runs
    the atomic not wait for the others' stores. One that acquires at the same address takes over what was published
    there, and what the publishers had taken over. The atomics of a block order nothing: each thread would order only
    its own accesses.
    """

    def __init__(self, programs: int) -> None:
        self._programs = programs
        self._accesses = [_Access(0, -1, -1, ())]  # by number; 0 stands for none
        self._numbers: dict[_Access, int] = {}
        self._published: dict[int, np.ndarray] = {}  # address → per program, the last stamp

    def begin(self, program: int) -> None:
        self._program, self._epoch = program, 0
        self._seen = np.full(self._programs, -1, np.int32)  # per program: the last stamp that comes before now
        self._before: set[int] = set()  # accesses found to come before now, with all that are chained to them

    def barrier(self) -> None:
        self._epoch += 1

    def synchronize(self, address: int, acquire: bool, release: bool) -> None:
        """A scalar atomic has happened."""
        published = self._published.get(address)
        if acquire and published is not None:
            self._seen = np.maximum(self._seen, published)
        if release:
            clock = self._seen.copy()
            clock[self._program] = 2 * self._epoch
            self._published[address] = clock if published is None else np.maximum(clock, published)
        self._epoch += 1

    def record(
        self, history: np.ndarray, where: Any, chain: bool, scalar_atomic: bool = False, block: tuple[int, ...] = ()
    ) -> None:
        """Write an access of now into ``history[where]``, chained to what was there, or instead of it."""
        stamp = 2 * self._epoch + (not scalar_atomic)
        old, position = [0], None
        if chain:
            old, position = self._distinct(history[where])
        numbers = []
        for earlier in old:
            if self._accesses[earlier].program == self._program:
                earlier = self._accesses[earlier].earlier  # the same program's: comes before this one anyway
            access = _Access(earlier, self._program, stamp, block)
            if access not in self._numbers:
                self._numbers[access] = len(self._accesses)
                self._accesses.append(access)
            numbers.append(self._numbers[access])
        history[where] = numbers[0] if position is None else np.array(numbers, np.int32)[position]

    def unordered(self, numbers: np.ndarray) -> dict[int, int]:
        """Of these accesses those that are, or are chained to one, in no order with now: number → its program."""
        found = {}
        for number in self._distinct(numbers)[0]:
            chain, at = [], number
            while at and at not in self._before:
                access = self._accesses[at]
                if access.program != self._program and access.stamp > self._seen[access.program]:
                    found[number] = access.program
                    break
                chain.append(at)
                at = access.earlier
            else:
                self._before.update(chain)
        return found

    def of_now(self, numbers: np.ndarray) -> dict[int, tuple[int, ...]]:
        """Of these accesses those of this program since the last barrier: number → block."""
        accesses = {x: self._accesses[x] for x in self._distinct(numbers)[0]}
        stamp = 2 * self._epoch + 1
        return {x: a.block for x, a in accesses.items() if a.program == self._program and a.stamp == stamp}

    @staticmethod
    def _distinct(numbers: np.ndarray) -> tuple[list[int], np.ndarray | None]:
        """The distinct numbers, and where each is among them (None: all are the same, as they mostly are)."""
        if (numbers == numbers[0]).all():
            return [int(numbers[0])], None
        found, position = np.unique(numbers, return_inverse=True)
        return found.tolist(), position
