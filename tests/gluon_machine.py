"""One program of a Gluon kernel as an order of events: partitions of warps, bulk copies and products, taking turns.

What goes on at once on a chip goes on here in a random order: copies and products read and write at any time between
their begin and the wait for them. Every access to shared memory is an event, a bit of an int, and a partition knows the
events that come before what it does next: its own, and those that a barrier or a wait told it of. To access memory
without knowing of the last access that conflicts is a fault, in whatever order the two happened to run; and so is

- a copy or product that reads what threads wrote, with no fence in between (they go past each other on the chip),
- a wait that nothing ends, an arrival at a barrier too many,
- a result used before its product was waited for,
- the end of a program under copies that still read its shared memory.
"""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable
from typing import Any


class Fault(AssertionError):
    """What would go wrong on a chip, at times."""


class _Stopped(BaseException):
    """Unwinds the partitions of a program that has a fault."""


def check(sound: Any, complaint: str) -> None:
    if not sound:
        raise Fault(complaint)


# --- shared memory ----------------------------------------------------------------------------------------------------


class Region:
    """Shared memory that is always accessed as a whole, and which events matter to whoever accesses it next."""

    def __init__(self) -> None:
        self.writes = self.accesses = self.by_threads = 0

    def read(self, by: Partition, event: int) -> None:
        """By a copy or a product."""
        check(not self.writes & ~by.known, f"{by.name} reads what may not be there yet")
        check(not self.by_threads & ~by.fenced, f"{by.name} has no fence between what threads wrote and its reading")
        self.accesses |= event

    def write(self, by: Partition, event: int, threads: bool) -> None:
        check(not self.accesses & ~by.known, f"{by.name} overwrites what may still be read or written")
        check(
            threads or not self.by_threads & ~by.fenced, f"{by.name} has no fence between what threads wrote and a copy"
        )
        self.writes = self.accesses = event
        self.by_threads = event if threads else 0


class Barrier:
    """An mbarrier: a phase is complete when so many have arrived, and all bytes that they expect have come."""

    count = 0

    def init(self, by: Partition, event: int, count: int) -> None:
        self.count = self.missing = count
        self.phase = self.bytes = 0
        self.told = self.tells = 0  # what those who arrive know; what those who wait are told
        self.begin = event

    def use(self, by: Partition, copy: bool = False) -> None:
        check(self.count and not self.begin & ~by.known, f"{by.name} uses a barrier that is not there yet")
        check(not copy or not self.begin & ~by.fenced, f"{by.name} has no fence between a barrier's begin and a copy")

    def change(self, known: int, arrivals: int = 0, nbytes: int = 0) -> None:
        self.missing, self.bytes, self.told = self.missing - arrivals, self.bytes + nbytes, self.told | known
        check(self.missing >= 0, "more arrive at a barrier than it waits for")
        if self.missing == 0 and self.bytes == 0:
            self.phase, self.missing, self.tells, self.told = self.phase + 1, self.count, self.told, 0

    def is_complete(self, parity: int) -> bool:
        return self.phase % 2 != parity


# --- what takes turns -------------------------------------------------------------------------------------------------


class Operation:
    """A copy or product: it goes on by itself, step by step."""

    def __init__(self, kind: str, event: int, after: Operation | None, steps: tuple[Callable[[], None], ...]):
        self.kind, self.event, self.after, self.steps = kind, event, after, list(steps)
        self.begun = False

    def step(self) -> None:
        self.steps.pop(0)()
        self.begun = True


class Partition:
    """Some warps of a program."""

    def __init__(self, name: str, known: int = 0, fenced: int = 0):
        self.name = name
        self.known, self.fenced = known, fenced  # events that come before; those of them that came before a fence
        self.products: list[Operation] = []
        self.stores: list[Operation] = []
        self.go, self.over = threading.Semaphore(0), False
        self.waiting: Callable[[], bool] | None = None


class Machine:
    """Runs one program: each partition on a thread, one of them at a time."""

    def __init__(self, draw: random.Random):
        self.draw = draw
        self.events = (1 << i for i in itertools.count())
        self.current = Partition("the program")
        self.partitions: list[Partition] = []
        self.under_way: list[Operation] = []
        self.pace: dict[str, float] = {}
        self.back = threading.Semaphore(0)
        self.fault: BaseException | None = None

    def specialize(self, functions: list[tuple[Any, tuple[Any, ...]]], warps: list[int], registers: list[int]) -> None:
        parent = self.current
        for i, (function, args) in enumerate(functions):
            p = Partition(f"{function.__name__.strip('_')}[{i}]", parent.known, parent.fenced)
            self.partitions.append(p)
            threading.Thread(target=self._run, args=(p, function, args), daemon=True).start()
        try:
            while not all(p.over for p in self.partitions):
                self._next()
            check(all(o.kind == "store" for o in self.under_way), "a program ends under copies into its memory")
            while self.under_way:
                self._next()
        finally:
            self.fault = self.fault or _Stopped()
            for p in self.partitions:
                p.go.release()

    def _next(self) -> None:
        """Whoever is able to goes on. How often each is chosen is drawn anew for each program, and differs widely."""
        able: list[Any] = [p for p in self.partitions if not p.over and (p.waiting is None or p.waiting())]
        able += [o for o in self.under_way if o.after is None or o.after not in self.under_way]
        check(able, f"nothing ends the wait of {' and '.join(p.name for p in self.partitions if not p.over)}")
        kinds = [x.kind if isinstance(x, Operation) else x.name for x in able]
        weights = [self.pace.setdefault(kind, self.draw.choice([0.01, 1, 1, 100])) for kind in kinds]
        (chosen,) = self.draw.choices(able, weights)
        if isinstance(chosen, Operation):
            chosen.step()
            if not chosen.steps:
                self.under_way.remove(chosen)
            return
        self.current = chosen
        chosen.go.release()
        self.back.acquire()
        if self.fault is not None:
            raise self.fault

    def _run(self, p: Partition, function: Any, args: tuple[Any, ...]) -> None:
        p.go.acquire()
        try:
            if self.fault is None:
                function(*args)
                check(all(s.event & p.known for s in p.stores), f"{p.name} ends while a copy may still read its memory")
            p.over = True
        except _Stopped:
            return
        except BaseException as error:
            self.fault = error
        self.back.release()

    def turn(self, until: Callable[[], bool] | None = None) -> tuple[Partition, int]:
        """Let others go on, at least until something is so: the partition whose turn it is then, and a new event."""
        p = self.current
        if self.partitions:
            p.waiting = until
            self.back.release()
            p.go.acquire()
            if self.fault is not None:
                raise _Stopped
        return p, next(self.events)

    def begin(self, kind: str, event: int, *steps: Callable[[], None], after: Operation | None = None) -> Operation:
        self.under_way.append(Operation(kind, event, after, steps))
        return self.under_way[-1]

    def wait_for(self, operations: list[Operation]) -> None:
        """Until they have read all that they read."""
        p, _ = self.turn(lambda: all(o.begun for o in operations))
        for o in operations:
            p.known |= o.event
