"""Fixtures that more than one file of tests uses."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from sanitizer import Sanitizer


@pytest.fixture
def sanitized(request: pytest.FixtureRequest) -> Callable[..., Sanitizer]:
    """``with sanitized() as san:`` runs the launches inside under the sanitizer (sanitizer/__init__.py).

    Each test has its programs shuffled in its own way, always the same. A test of a kernel whose programs take part in
    each other's work is marked ``@every_order``, and runs with several orders.
    """
    from sanitizer import Sanitizer  # here, since it imports Triton

    seed = getattr(request, "param", zlib.crc32(request.node.nodeid.encode()))
    return functools.partial(Sanitizer, seed)
