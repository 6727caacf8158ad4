"""``tilegrad info``: what is installed, and what this machine can run."""

from __future__ import annotations

import importlib.metadata
import platform

import click

from .. import __version__, backends, storage

PACKAGES = ("numpy", "ml_dtypes", "safetensors", "torch", "triton", "cupy", "sklearn", "matplotlib")


@click.command()
def info() -> None:
    """Show versions, devices and backends, and for what cannot run why not and what would mend it."""
    click.echo("versions")
    versions = {"tilegrad": __version__, "python": platform.python_version()}
    distributions = importlib.metadata.packages_distributions()  # cupy comes as cupy-cuda12x, cupy-cuda13x, ...
    for package in PACKAGES:
        found = distributions.get(package)
        versions[package] = importlib.metadata.version(found[0]) if found else "not installed"
    _table(list(versions.items()))
    click.echo("devices")
    _table([(name, _verdict(can_use), why) for name, can_use, why in storage.devices()])
    click.echo("backends")
    _table([(name, _verdict(can_run), why) for name, can_run, why in backends.describe()])
    click.echo("CUDA C++")
    _table([(name, _verdict(found), what) for name, found, what in backends.describe_cuda()])


def _verdict(can: bool) -> str:
    return "yes" if can else "no"


def _table(rows: list[tuple[str, ...]]) -> None:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        click.echo("  " + "  ".join([*cells, row[-1]]))
