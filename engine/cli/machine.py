"""Checks of ``--device`` and ``--backend``, before any work is done."""

from __future__ import annotations

from .. import backends, storage, zeros
from .errors import UserError, user_errors

BACKENDS = ["auto", "reference", "cpu", "triton", "cuda"]


def check_device(device: str) -> None:
    """A UserError if there is no such device here."""
    with user_errors(ValueError, RuntimeError):
        storage.to_device(zeros(1)._array, device)


def check_backend(backend: str) -> None:
    """A UserError with the reason if the backend cannot run here."""
    for name, can_run, why in backends.describe():
        if name == backend and not can_run:
            raise UserError(f"--backend {backend}: {why}")
