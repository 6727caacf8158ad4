"""A library of emulated kernels (build.py), as Python sees it through ctypes."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

EARLY, LATE, RANDOM = range(3)  # when asynchronous work completes
READ, WRITE, BOTH, WORKSPACE = 1, 2, 3, 7  # a workspace holds nothing at first, so it must be written before it is read


@dataclass
class Traffic:
    """Bytes of an array that kernels have read and written, and how many different ones."""

    bytes_read: int
    bytes_written: int
    distinct_read: int
    distinct_written: int


class Library:
    """One library of kernels; ``functions`` has the extern "C" functions that launch them."""

    def __init__(self, path: Path) -> None:
        self.functions = ctypes.CDLL(str(path))

    def configure(self, seed: int = 0, completion: int = EARLY, compute_capability: int = 90) -> None:
        """How kernels run from now on: seed 0 is in order, any other one shuffles blocks and threads."""
        shuffle = int(seed > 0)
        self.functions.cuda_emulator_configure(ctypes.c_uint64(seed), shuffle, completion, compute_capability)

    @contextmanager
    def watch(self, **arrays: tuple[np.ndarray, int]) -> Iterator[None]:
        """The kernels inside may access these arrays only, each as READ, WRITE, BOTH or WORKSPACE says."""
        try:
            for name, (array, access) in arrays.items():
                address, size = ctypes.c_void_p(array.ctypes.data), ctypes.c_uint64(array.nbytes)
                if not self.functions.cuda_emulator_watch(address, size, name.encode(), access):
                    raise ValueError(f"{name} overlaps with another array that is watched")
            yield
        finally:
            self.functions.cuda_emulator_forget()

    def traffic(self, name: str) -> Traffic:
        """Of an array that is watched, since it has been."""
        counts = (ctypes.c_uint64 * 4)()
        if not self.functions.cuda_emulator_traffic(name.encode(), counts):
            raise KeyError(name)
        return Traffic(*counts)
