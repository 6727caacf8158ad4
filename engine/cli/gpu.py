"""What ``tilegrad tune`` asks of a GPU: arrays of its own, and the time that something takes there."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Protocol

from .. import storage
from .errors import UserError

# Before anything is timed this much is written, so many times. It is more than any L2 holds, so nothing is found there
# that a call before left behind; and it keeps the GPU busy for 0.2 ms or more, in which the host gets ahead of it: what
# is timed then is not the host.
FLUSHED = 256 << 20  # bytes
FLUSHES = 4


class Gpu(Protocol):
    """The current GPU, through a library of arrays."""

    name: str  # its model

    def normal(self, shape: tuple[int, ...], dtype: str) -> Any:
        """Standard normal numbers."""

    def below(self, count: int, shape: tuple[int, ...]) -> Any:
        """int64 in [0, count)."""

    def time(self, call: Callable[[], Any]) -> float:
        """The microseconds that the GPU takes for a call, from a cold cache."""

    def difference(self, x: Any, y: Any) -> float:
        """The largest |x − y|, over the largest |y|; infinite where either is not finite."""


class OfCupy:
    """Through CuPy."""

    def __init__(self) -> None:
        self.cupy = storage.cupy()
        runtime, event = self.cupy.cuda.runtime, self.cupy.cuda.Event
        self.name = str(runtime.getDeviceProperties(runtime.getDevice())["name"].decode())
        self._draw = self.cupy.random.default_rng(0)
        self._flushed = self.cupy.empty(FLUSHED, self.cupy.uint8)
        self._start, self._stop = event(), event()

    def normal(self, shape: tuple[int, ...], dtype: str) -> Any:
        return self._draw.standard_normal(shape, self.cupy.float32).astype(storage.numpy_dtype(dtype))

    def below(self, count: int, shape: tuple[int, ...]) -> Any:
        return self._draw.integers(0, count, shape)

    def time(self, call: Callable[[], Any]) -> float:
        for _ in range(FLUSHES):
            self._flushed.fill(0)
        self._start.record()
        call()
        self._stop.record()
        self._stop.synchronize()
        return float(self.cupy.cuda.get_elapsed_time(self._start, self._stop)) * 1e3

    def difference(self, x: Any, y: Any) -> float:
        x, y = storage.wide(x), storage.wide(y)
        return _relative(float(abs(x - y).max()), float(abs(y).max()))


class OfTorch:
    """Through torch."""

    def __init__(self) -> None:
        import torch

        self.torch = torch
        self.name = str(torch.cuda.get_device_name())
        self._draw = torch.Generator("cuda").manual_seed(0)
        self._flushed = torch.empty(FLUSHED, dtype=torch.uint8, device="cuda")
        self._start, self._stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def normal(self, shape: tuple[int, ...], dtype: str) -> Any:
        drawn = self.torch.randn(shape, generator=self._draw, device="cuda")
        return drawn.to(getattr(self.torch, dtype))

    def below(self, count: int, shape: tuple[int, ...]) -> Any:
        return self.torch.randint(count, shape, generator=self._draw, device="cuda")

    def time(self, call: Callable[[], Any]) -> float:
        for _ in range(FLUSHES):
            self._flushed.fill_(0)
        self._start.record()
        call()
        self._stop.record()
        self._stop.synchronize()
        return float(self._start.elapsed_time(self._stop)) * 1e3

    def difference(self, x: Any, y: Any) -> float:
        x, y = (z if z.dtype == self.torch.float64 else z.float() for z in (x, y))
        return _relative(float((x - y).abs().max()), float(y.abs().max()))


def _relative(error: float, scale: float) -> float:
    if error == 0:
        return 0.0  # of zeros too
    return error / scale if error < float("inf") and 0 < scale < float("inf") else float("inf")


def find_gpu() -> Gpu:
    """The current GPU, through CuPy where it is installed.

    Raises:
        UserError: there is none, or neither library; or kernels are interpreted.
    """
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        raise UserError("tune measures kernels on a GPU, and TRITON_INTERPRET has them interpreted: unset it")
    if storage.cuda_device_count():
        return OfCupy()
    try:
        import torch
    except ImportError:
        found = False
    else:
        found = torch.cuda.is_available()
    if not found:
        raise UserError("tune measures on a GPU, and neither CuPy nor torch finds one on this machine")
    return OfTorch()
