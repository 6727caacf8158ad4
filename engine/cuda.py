"""The names of ``torch.cuda`` that programs ask for before they choose a device."""

from __future__ import annotations

from . import storage
from .rng import manual_seed


def is_available() -> bool:
    """Whether device "cuda" can be used: CuPy is installed and finds a GPU."""
    return device_count() > 0


def device_count() -> int:
    """How many GPUs can be used."""
    return storage.cuda_device_count()


def synchronize(device: object = None) -> None:
    """Wait until the GPU has done all that was asked of it; nothing without one."""
    if is_available():
        storage.cupy().cuda.runtime.deviceSynchronize()


def manual_seed_all(seed: int) -> None:
    """Seed the default generator, which serves every device."""
    manual_seed(seed)


__all__ = ["device_count", "is_available", "manual_seed", "manual_seed_all", "synchronize"]
