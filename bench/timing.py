"""Contestants timed in turns, tables of their ratios, a copy of memory to hold them against, and what machine it was.

Nothing here knows what is timed. The traps that it disarms are those of one process in which several libraries have
threads: settings that are inherited (`fresh_process`), workers that spin on after their call (`PAUSE`), a machine that
is faster in one minute than in the next (`interleaved`: ratios are taken within a round).
"""

from __future__ import annotations

import ctypes
import datetime
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Call = Callable[[], object]

# What would give one side fewer threads, or other kernels, than it takes by itself. OPENBLAS_CORETYPE can hold NumPy's
# products at half of their speed.
INHERITED = (
    "OPENBLAS_CORETYPE", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT",
    "MKL_NUM_THREADS", "ATEN_CPU_CAPABILITY", "TILEGRAD_BACKEND",
)  # fmt: skip

# glibc's memmove streams past the caches only what it takes to be larger than them, which on virtual machines can be
# hundreds of MiB. A copy that does not stream is slower by a third, and would flatter what is held against it.
STREAMING = "glibc.cpu.x86_non_temporal_threshold=0x400000"

PAUSE = 0.03  # seconds between contestants: OpenBLAS's workers spin for 2²⁶ cycles after a call, OpenMP's for less
ENOUGH = 0.02  # seconds that a measurement takes, in as many calls as that needs: as in a loop of training steps


def fresh_process() -> tuple[str, ...]:
    """Begin this program again in an environment that favours no side; which variables were unset for that."""
    if "BENCH_UNSET" not in os.environ:
        found = [name for name in INHERITED if name in os.environ]
        for name in found:
            del os.environ[name]
        os.environ |= {"BENCH_UNSET": " ".join(found), "GLIBC_TUNABLES": STREAMING}
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    return tuple(os.environ["BENCH_UNSET"].split())


# --- time -------------------------------------------------------------------------------------------------------------


def _seconds(call: Call, times: int) -> float:
    begin = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - begin) / times


def interleaved(contestants: Mapping[str, Call], rounds: int, pause: float = PAUSE) -> dict[str, list[float]]:
    """Seconds that a call of each contestant takes, once in every round; they take turns in being first.

    Calls shorter than ENOUGH are warmed up by one call, and repeated. What a call returns is dropped within its time,
    so outputs are as fresh as they are in a loop of training steps: page faults, where the allocator has them, count.
    """
    names = list(contestants)
    times = {}
    for name, call in contestants.items():
        call()
        times[name] = max(1, round(ENOUGH / max(min(_seconds(call, 1) for _ in range(3)), 1e-7)))
    found: dict[str, list[float]] = {name: [] for name in names}
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            time.sleep(pause)
            if times[name] > 1:
                contestants[name]()
            found[name].append(_seconds(contestants[name], times[name]))
    return found


class Ratio(NamedTuple):
    """The median of the rounds' ratios and their quartiles."""

    median: float
    low: float
    high: float


def ratio(theirs: Sequence[float], ours: Sequence[float], scale: float = 1.0) -> Ratio:
    """``scale`` · theirs / ours, round by round: above 1 where ours is faster."""
    all_rounds = [scale * t / o for t, o in zip(theirs, ours, strict=True)]
    if len(all_rounds) == 1:
        return Ratio(all_rounds[0], all_rounds[0], all_rounds[0])
    low, median, high = statistics.quantiles(all_rounds, method="inclusive")
    return Ratio(median, low, high)


# --- tables -----------------------------------------------------------------------------------------------------------


class Row(NamedTuple):
    """A line of a table."""

    group: str
    case: str
    rival: str
    ours: float
    theirs: float
    unit: str
    ratio: Ratio
    aim: float | None

    @property
    def verdict(self) -> str:
        return "" if self.aim is None else "ok" if self.ratio.median >= self.aim else "below"

    @property
    def cells(self) -> list[str]:
        times = [f"{t:.3g}" if t < 100 else f"{t:.0f}" for t in (self.ours, self.theirs)]
        aim = "" if self.aim is None else f"≥ {self.aim:g}"
        median, low, high = (f"{x:.2f}" for x in self.ratio)
        return [self.case, self.rival, *times, self.unit, f"{median}×", f"{low}–{high}", aim, self.verdict]

    def __str__(self) -> str:
        """A line of a table that is printed as it is made."""
        case, rival, ours, theirs, unit, median, quartiles, aim, verdict = self.cells
        return f"{case:66} {rival:20} {ours:>7} {theirs:>7} {unit:3} {median:>7} {quartiles:>13} {aim:>6} {verdict}"


def markdown(rows: Sequence[Row], titles: Mapping[str, str]) -> str:
    """A table for each group that has a title, in the order of these."""
    tables = []
    for group, title in titles.items():
        lines = [row.cells for row in rows if row.group == group]
        if lines:
            table = [[title, "against", "ours", "theirs", "", "ratio", "quartiles", "aim", ""], ["---"] * 9, *lines]
            tables.append("\n".join(f"| {' | '.join(cells)} |" for cells in table))
    return "\n\n".join(tables)


def write_between(page: Path, begin: str, end: str, text: str) -> None:
    """Put the text where the last one stands, between two lines of a page."""
    before, rest = page.read_text().split(begin)
    page.write_text(f"{before}{begin}\n\n{text}\n\n{end}{rest.split(end, 1)[1]}")


# --- memory -----------------------------------------------------------------------------------------------------------

COPIED = 256 << 20  # bytes


def copier(size: int = COPIED) -> Call:
    """A call that copies so many bytes with all cores, into memory that has been written before."""
    source, to = np.ones(size, np.uint8), np.ones(size, np.uint8)
    threads = cores()
    parts = [slice(size * i // threads, size * (i + 1) // threads) for i in range(threads)]
    pool = ThreadPoolExecutor(threads)
    return lambda: list(pool.map(lambda part: np.copyto(to[part], source[part]), parts))


def peak_bytes(work: Call) -> int:
    """How much more memory than before this process holds during a call, at its peak (Linux)."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the high-water mark becomes what is held now
    before = _status("VmRSS")
    work()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith(f"{field}:"))


# --- the machine ------------------------------------------------------------------------------------------------------


class Others:
    """What other programs, and other guests of the same host, take of the cores; Linux.

    Times are worth little then, and those of small calls with threads of OpenMP nothing: each waits for a worker that
    is not running.
    """

    TOLERATED = 0.05

    def __init__(self) -> None:
        self.begin = self._spent()

    def share(self) -> float:
        """Of the cores' time since the beginning."""
        wall, busy, own = (now - then for now, then in zip(self._spent(), self.begin, strict=True))
        return max(0.0, busy - own) / (wall * (os.cpu_count() or 1))

    @staticmethod
    def _spent() -> tuple[float, float, float]:
        """Seconds that have passed, those that cores were busy for, and those of this process and its children."""
        with open("/proc/stat") as file:
            user, nice, system, _idle, _waiting, *rest = map(int, file.readline().split()[1:9])
        busy = (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")
        return time.monotonic(), busy, sum(os.times()[:4])


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0))


def machine() -> dict[str, str]:
    """What a table of times has to say about where it was made."""
    try:
        with open("/proc/cpuinfo") as file:
            first = [line.partition(":") for line in file.read().split("\n\n")[0].splitlines()]
        said = {name.strip(): value.strip() for name, _, value in first}
        cpu = f"{said['model name']} (family {said['cpu family']}, model {said['model']})"  # guests may see half a name
    except (OSError, KeyError):
        cpu = platform.processor() or platform.machine()
    return {
        "processor": f"{cpu}, {cores()} cores",
        "Python": platform.python_version(),
        "NumPy": f"{np.__version__}, {_blas()}",
        **{name: sys.modules[name].__version__ for name in ("torch", "tilegrad") if name in sys.modules},
        "date": datetime.date.today().isoformat(),
    }


def _blas() -> str:
    """NumPy's BLAS, and the kernels that it chose for this processor where it is an OpenBLAS."""
    config: Any = np.show_config(mode="dicts")
    blas = config["Build Dependencies"]["blas"]
    chosen = f"{blas['name']} {blas['version']}"
    with open("/proc/self/maps") as file:
        libraries = {line.split()[-1] for line in file if "openblas" in line}
    for library in libraries:
        for name in ("scipy_openblas_get_corename64_", "scipy_openblas_get_corename", "openblas_get_corename"):
            corename = getattr(ctypes.CDLL(library), name, None)
            if corename is not None:
                corename.restype = ctypes.c_char_p
                return f"{chosen}, kernels for {corename().decode()}"
    return chosen
