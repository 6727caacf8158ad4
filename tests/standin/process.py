"""Tests that run by themselves, each in a process where the stand-in driver is the driver."""

from __future__ import annotations

import functools
import inspect
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from . import driver

INSIDE = "STANDIN_CALLS" in os.environ


def in_its_own_process(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test by a pytest of its own. It needs a fixture ``standin``: the path of the library."""
    if INSIDE:
        return test

    def run(request: Any, standin: Path, tmp_path: Path, **parameters: Any) -> None:
        test_id = f"{request.path}::{request.node.nodeid.partition('::')[2]}"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--noconftest", test_id]
        calls = tmp_path / "calls"
        calls.touch()
        environment = driver.environment(standin.parent, calls)
        done = subprocess.run(command, env=environment, cwd=request.config.rootpath, capture_output=True, text=True)
        if "1 skipped" in done.stdout:
            pytest.skip("skipped in its own process")
        if done.returncode or "1 passed" not in done.stdout:
            pytest.fail(done.stdout + done.stderr, pytrace=False)

    own = inspect.signature(test).parameters.values()
    ours = [p for p in inspect.signature(run).parameters.values() if p.kind is not p.VAR_KEYWORD]
    functools.update_wrapper(run, test)
    del run.__wrapped__  # or pytest would look through
    run.__signature__ = inspect.Signature([*ours, *own])  # type: ignore[attr-defined]
    return run


def without_torch() -> None:
    """From now on torch is not installed. Where it is, Triton 3.6 imports it with the first launch."""

    class Refuse:
        @staticmethod
        def find_spec(name: str, path: Any = None, target: Any = None) -> None:
            if name == "torch":
                raise ModuleNotFoundError("No module named 'torch'", name=name)

    assert "torch" not in sys.modules
    sys.meta_path.insert(0, Refuse)  # type: ignore[arg-type]
