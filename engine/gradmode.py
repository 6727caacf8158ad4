"""Whether operations are recorded: ``no_grad``, ``enable_grad``, ``set_grad_enabled``; per thread."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any


class _Mode(threading.local):
    enabled = True


_mode = _Mode()


def is_grad_enabled() -> bool:
    """Whether operations are recorded now, in this thread."""
    return _mode.enabled


class set_grad_enabled:
    """Record operations or not: a call that lasts, a ``with`` block, or a decorator."""

    def __init__(self, mode: bool):
        self._previous = _mode.enabled
        self._wanted = mode
        _mode.enabled = mode

    def __enter__(self) -> set_grad_enabled:
        return self

    def __exit__(self, *exc: object) -> None:
        _mode.enabled = self._previous

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        _mode.enabled = self._previous  # a decorator changes nothing until the function runs
        wanted = self._wanted

        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with set_grad_enabled(wanted):
                return function(*args, **kwargs)

        return wrapped


class _ModeBlock:
    """``no_grad`` and ``enable_grad``: with and without parentheses, as a block and as a decorator."""

    _wanted: bool

    def __new__(cls, function: Callable[..., Any] | None = None) -> Any:
        self = super().__new__(cls)
        self._stack = []
        return self if function is None else self(function)

    _stack: list[bool]

    def __enter__(self) -> None:
        self._stack.append(_mode.enabled)
        _mode.enabled = self._wanted

    def __exit__(self, *exc: object) -> None:
        _mode.enabled = self._stack.pop()

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with type(self)():
                return function(*args, **kwargs)

        return wrapped


class no_grad(_ModeBlock):
    """Nothing inside is recorded, and its results require no gradient."""

    _wanted = False


class enable_grad(_ModeBlock):
    """What is inside is recorded, also within ``no_grad``."""

    _wanted = True
