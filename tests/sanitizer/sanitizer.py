"""What tests use: the sanitizer's scope, the roles of arrays, and what was found."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from .interpreter import Call, interpreted
from .launch import WATCHED, Execution, Fault, Launch
from .memory import INITIALISED, OUTPUT, Extent, Memory, Region

ORDERS = {"in order": 0, "reversed": 1, "shuffled": 2, "shuffled otherwise": 3}  # seeds

# For tests of kernels whose programs take part in each other's work: see the fixture ``sanitized``.
every_order = pytest.mark.parametrize("sanitized", ORDERS.values(), ids=ORDERS.keys(), indirect=True)


class Sanitizer:
    """Interprets the launches in its block.

    ``seed`` orders the programs: 0 as they are numbered, 1 the other way round, others shuffled. ``check=False`` keeps
    the faults for ``faults`` to tell; an access out of bounds is raised all the same.

    Arrays are NumPy's, torch's on the CPU, or Views. They get their roles from ``own``. Where launches come from an
    operation of tilegrad's backends, what it is given are inputs, what it fills are outputs, and what is allocated
    meanwhile is workspace. Any other array counts as initialised, and may be written.
    """

    def __init__(self, seed: int = 0, check: bool = True) -> None:
        self.launches: list[Launch] = []
        self.faults: list[Fault] = []
        self._seed, self._check = seed, check
        self._noted: set[tuple[str, ...]] = set()
        self._memory = Memory()
        self._past: list[Region] = []  # without their arrays, for what was issued there
        self._operation: str | None = None  # the one that the backends are running
        self._scope = contextlib.ExitStack()

    def __enter__(self) -> Sanitizer:
        self._scope.enter_context(_watching(self))
        return self

    def __exit__(self, kind: type | None, *exception: Any) -> None:
        self._scope.close()
        self._leave(self._memory, finished=kind is None)
        if self.faults and self._check and kind is None:
            raise AssertionError("\n".join(["the sanitizer found", *map(str, self.faults)]))

    def own(self, array: Any, role: str) -> Any:
        """Make an array, which is returned, "input", "output", "inout" or "workspace"."""
        self._memory.own(array, role)
        return array

    @property
    def least(self) -> int:
        """Bytes of inputs that were read and of outputs that were written, each once."""
        return sum(region.least for region in self._all_regions())

    @property
    def traffic(self) -> float:
        """All bytes that were issued, as a multiple of the least."""
        return sum(x.read + x.written for x in self.launches) / self.least

    def issued_by(self, array: Any) -> tuple[int, int]:
        """Bytes read from and written to an array, and any that overlap it."""
        low, high = Extent.of(array).bounds
        regions = [region for region in self._all_regions() if region.low < high and low < region.high]
        return sum(r.read for r in regions), sum(r.written for r in regions)

    def _all_regions(self) -> list[Region]:
        return [*self._past, *self._memory.regions.values()]

    def launch(self, call: Call) -> None:
        """Interpret a launch."""
        execution = Execution(call, self._memory, self._note)
        self.launches.append(execution.launch)
        execution.run(_programs(call.programs, self._seed))

    def operation(self, run: Callable[..., None], name: str, *args: Any, **outputs: Any) -> None:
        """``backends._run``, whose arrays have their roles for as long as it runs."""
        outside, self._memory, self._operation = self._memory, Memory(), name
        roles = {"upstream": "input", "flag": "inout", "inplace": "inout"}
        finished = False
        try:
            for role, x in [("input", x) for x in args] + [(roles.get(k, "output"), x) for k, x in outputs.items()]:
                if hasattr(x, "dtype"):
                    self.own(x, role)
            run(name, *args, **outputs)
            finished = True
        finally:
            self._leave(self._memory, finished)
            self._memory, self._operation = outside, None

    def allocated(self, array: Any) -> Any:
        """``backends._empty``: what it makes before an operation is known once it is handed over as an output."""
        return array if self._operation is None else self.own(array, "workspace")

    def _leave(self, memory: Memory, finished: bool) -> None:
        """Forget arrays. If what they were for is finished, the outputs among them have to be written."""
        for region in memory.regions.values():
            region.begin()
            missing = region.marked(OUTPUT) - region.marked(OUTPUT | INITIALISED)
            if missing and finished:
                last = self._operation or (self.launches[-1].name if self.launches else "no kernel")
                what = f"{missing} of {region.marked(OUTPUT)} bytes of {region}"
                self._note(Fault("unwritten-output", last, None, what), what)
            region.arrays = []
        self._past += memory.regions.values()
        memory.regions = {}

    def _note(self, fault: Fault, line: str) -> None:
        """Keep a fault, the first of a kind at a line of a kernel."""
        if (fault.kind, fault.kernel, line) not in self._noted:
            self._noted.add((fault.kind, fault.kernel, line))
            self.faults.append(fault)


def _programs(count: int, seed: int) -> np.ndarray:
    """The order in which the programs of a launch run."""
    if seed in (0, 1):
        return np.arange(count)[:: -1 if seed else 1]
    return np.random.default_rng(seed).permutation(count)


@contextlib.contextmanager
def _watching(sanitizer: Sanitizer) -> Iterator[None]:
    """Send to the sanitizer all launches, and what tilegrad's backends run and allocate."""
    with interpreted(WATCHED, sanitizer.launch), pytest.MonkeyPatch.context() as patch:
        backends = sys.modules.get("tilegrad.backends")
        if backends is not None:
            run, empty = backends._run, backends._empty
            patch.setattr(backends, "_run", lambda *args, **outputs: sanitizer.operation(run, *args, **outputs))
            patch.setattr(backends, "_empty", lambda *args: sanitizer.allocated(empty(*args)))
        yield
