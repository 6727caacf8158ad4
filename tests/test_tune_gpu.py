"""The arrays and the clock of `tilegrad tune`, of either library, on doubles that have no GPU."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("triton")

from tuning_toys import ask_for_name

from tilegrad.cli import gpu as gpus

tuner = importlib.import_module("tilegrad.cli.tune")  # the package gives the name to the command inside


@pytest.fixture
def written_down(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happens to events, in order; CuPy's double and a torch whose GPU is the CPU are installed."""
    real = pytest.importorskip("cupy")
    torch = pytest.importorskip("torch")
    import cupy_double

    record: list[str] = []

    class Event:
        made = 0

        def __init__(self, **options: Any):
            Event.made += 1
            self.name = "start" if Event.made % 2 else "stop"

        def record(self) -> None:
            record.append(self.name)

        def synchronize(self) -> None:
            record.append("wait")

        def elapsed_time(self, other: Event) -> float:
            assert (self.name, other.name, record[-1]) == ("start", "stop", "wait")
            return 0.0625  # milliseconds

    double = cupy_double.modules()
    cuda = types.SimpleNamespace(**vars(double["cupy"].cuda), Event=Event, get_elapsed_time=Event.elapsed_time)
    cuda.runtime = types.SimpleNamespace(**vars(cuda.runtime), getDevice=lambda: 0)
    assert all(hasattr(real.cuda, name) for name in vars(cuda))
    assert all(hasattr(real.cuda.runtime, name) for name in vars(cuda.runtime))
    monkeypatch.setattr(type(double["cupy"]), "cuda", cuda)
    for name, module in double.items():
        monkeypatch.setitem(sys.modules, name, module)

    def here(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, device, **options: function(*args, **options)

    generator = torch.Generator
    monkeypatch.setattr(torch, "Generator", lambda device: generator())
    for name in ("empty", "randn", "randint"):
        monkeypatch.setattr(torch, name, here(getattr(torch, name)))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A double")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(gpus, "FLUSHED", 1024)
    return record


@pytest.mark.parametrize("kind", ["OfCupy", "OfTorch"])
def test_a_gpu_of_either_library(written_down: list[str], kind: str):
    gpu = getattr(gpus, kind)()
    assert gpu.name == "A double"
    for dtype in tuner.DTYPES:
        x = gpu.normal((300, 200), dtype)
        assert (tuple(x.shape), str(x.dtype).rpartition(".")[2]) == ((300, 200), dtype)
        assert gpu.difference(x, x) == 0
        changed = x + 0
        changed[3, 4] = changed[3, 4] + 1
        assert gpu.difference(changed, x) == pytest.approx(1 / float(abs(x).max()), rel=0.02)
        changed[3, 4] = float("nan")
        assert gpu.difference(changed, x) == gpu.difference(x, changed) == float("inf")
    drawn = gpu.below(7, (1000,))
    assert str(drawn.dtype).rpartition(".")[2] == "int64"
    assert (int(drawn.min()), int(drawn.max())) == (0, 6)
    assert gpu._flushed.nbytes == gpus.FLUSHED
    gpu._flushed = types.SimpleNamespace(**dict.fromkeys(("fill", "fill_"), lambda value: written_down.append("flush")))
    assert gpu.time(lambda: written_down.append("call")) == 62.5
    assert written_down == [*gpus.FLUSHES * ["flush"], "start", "call", "stop", "wait"]


def test_cupy_comes_first(written_down: list[str], monkeypatch: pytest.MonkeyPatch):
    assert isinstance(gpus.find_gpu(), gpus.OfCupy)
    monkeypatch.setattr(gpus.storage, "cuda_device_count", lambda: 0)
    assert isinstance(gpus.find_gpu(), gpus.OfTorch)


def test_the_name_is_that_of_the_library_at_hand(written_down: list[str], monkeypatch: pytest.MonkeyPatch):
    assert ask_for_name() == "A double"
    monkeypatch.delitem(sys.modules, "torch")
    assert ask_for_name() == "A double"
    monkeypatch.delitem(sys.modules, "cupy")
    with pytest.raises(RuntimeError, match="neither is imported"):
        ask_for_name()
