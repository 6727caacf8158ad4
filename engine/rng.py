"""Random numbers: one seeded stream per device, drawn where they are needed."""

from __future__ import annotations

from typing import Any

import numpy as np

from .storage import Array, device, module_for


class Generator:
    """A stream of random numbers with a state of its own, for every device it is asked to draw on.

    The numbers are NumPy's (CuPy's on a GPU), not torch's: a seed repeats a run of this library, not one of torch.
    """

    def __init__(self, device: Any = None):
        self._streams: dict[str, Any] = {}
        self._seed = int(np.random.SeedSequence().entropy) % 2**63  # type: ignore[arg-type]

    def manual_seed(self, seed: int) -> Generator:
        """Start again from ``seed``."""
        if not isinstance(seed, (int, np.integer)):
            raise TypeError(f"manual_seed: expected an int, got {type(seed).__name__}")
        self._seed = int(seed)
        self._streams.clear()
        return self

    def initial_seed(self) -> int:
        """The seed that the stream started from."""
        return self._seed

    def get_state(self) -> dict[str, Any]:
        """The state of the CPU stream, as JSON-able values."""
        return {"seed": self._seed, "bits": self._stream("cpu").bit_generator.state}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from a state that ``get_state`` returned."""
        self.manual_seed(state["seed"])
        self._stream("cpu").bit_generator.state = state["bits"]

    def _stream(self, where: Any) -> Any:
        xp = module_for(where)
        key = "cpu" if xp is np else f"cuda:{xp.cuda.Device().id}"
        if key not in self._streams:
            self._streams[key] = xp.random.default_rng(self._seed % 2**64)
        return self._streams[key]

    def uniform(self, shape: tuple[int, ...], low: float, high: float, where: Any = "cpu") -> Array:
        """float64 from [low, high)."""
        with _on(where):
            return low + (high - low) * self._stream(where).random(shape)

    def normal(self, shape: tuple[int, ...], mean: float, std: float, where: Any = "cpu") -> Array:
        """float64, normal."""
        with _on(where):
            return mean + std * self._stream(where).standard_normal(shape)

    def integers(self, shape: tuple[int, ...], low: int, high: int, where: Any = "cpu") -> Array:
        """int64 from [low, high)."""
        with _on(where):
            return self._stream(where).integers(low, high, shape, dtype=np.int64)

    def permutation(self, n: int, where: Any = "cpu") -> Array:
        """0 … n−1 in a random order."""
        with _on(where):
            return module_for(where).argsort(self._stream(where).random(n)).astype(np.int64)


def _on(where: Any) -> Any:
    from contextlib import nullcontext

    where = device(where)
    return nullcontext() if where.type == "cpu" else module_for(where).cuda.Device(where.index)


default_generator = Generator()


def manual_seed(seed: int) -> Generator:
    """Seed the default generator, on all devices."""
    return default_generator.manual_seed(seed)


def seed() -> int:
    """Seed the default generator from the operating system's entropy; returns the seed."""
    return default_generator.manual_seed(Generator().initial_seed()).initial_seed()


def initial_seed() -> int:
    """The seed that the default generator started from."""
    return default_generator.initial_seed()
