"""``tilegrad predict``: the class of every row of an input, and its probability."""

from __future__ import annotations

import math
import os

import click
import numpy as np

from .. import backend as use_backend
from ..data.datasets import numbers, read_table
from .classifier import Classifier, read_checkpoint
from .errors import UserError, user_errors
from .machine import BACKENDS, check_backend, check_device
from .sources import SPELLINGS, load_source


@click.command()
@click.argument("checkpoint", type=click.Path())
@click.argument("input")
@click.option("--device", default="cpu", help="cpu, cuda or cuda:N")
@click.option("--backend", type=click.Choice(BACKENDS), default="auto", help="What computes the fused operations.")
def predict(checkpoint: str, input: str, device: str, backend: str) -> None:
    """Print row, class and probability, separated by tabs, for every row of INPUT.

    CHECKPOINT is a file that 'tilegrad train' wrote. INPUT is a .npy file of features, a .csv file with a
    header line, or a data set as 'tilegrad train' takes it (of MNIST, the test images). Features are in the
    units of the training data.
    """
    check_device(device)
    check_backend(backend)
    classifier = Classifier.from_state(read_checkpoint(checkpoint), device)
    features = _features(input, classifier)
    with use_backend(backend):
        probabilities = classifier.probabilities(features, device)
    best = probabilities.argmax(1)
    for row, (column, p) in enumerate(zip(best, probabilities[np.arange(len(best)), best], strict=True)):
        click.echo(f"{row}\t{classifier.classes[column]}\t{p:.4f}")


def _features(spec: str, classifier: Classifier) -> np.ndarray:
    """The rows of an input, (N, D) float32."""
    with user_errors(ValueError, OSError):
        if spec.endswith(".npy"):
            features = _from_npy(spec, classifier.architecture.inputs)
        elif spec.endswith(".csv") and not spec.startswith("csv:"):
            features = _from_csv(spec, classifier)
        elif os.path.isfile(spec):
            raise ValueError(f"'{spec}': expected a file that ends in .npy or .csv, or a data set: {SPELLINGS}")
        else:
            features = load_source(spec, "test").features
    if features.shape[1] != classifier.architecture.inputs:
        raise UserError(
            f"'{spec}' has {features.shape[1]} features in a row, "
            f"expected {classifier.architecture.inputs} as in training"
        )
    return features


def _from_npy(path: str, inputs: int) -> np.ndarray:
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"'{path}' is not a whole .npy file of numbers: {error}") from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
        raise ValueError(
            f"'{path}' holds {getattr(array, 'dtype', 'several arrays')}, expected one array of real numbers"
        )
    rows = array[None] if array.ndim == 1 else array  # one row alone
    if array.ndim == 0 or math.prod(rows.shape[1:]) != inputs:  # images may come as (N, height, width)
        raise ValueError(f"'{path}' has the shape {array.shape}, expected (N, {inputs}), as in training")
    rows = rows.reshape(len(rows), inputs).astype(np.float32)
    bad = ~np.isfinite(rows)
    if bad.any():
        row, column = map(int, np.argwhere(bad)[0])
        raise ValueError(f"'{path}', row {row}, column {column}: {rows[row, column]}, expected a finite number")
    return rows


def _from_csv(path: str, classifier: Classifier) -> np.ndarray:
    """By the names of the training data's columns if the file has them all, else every column in order."""
    table = read_table(path)
    names = classifier.feature_names
    missing = [name for name in names if name not in table.header]
    if names and not missing:
        return numbers(table, [table.header.index(name) for name in names])
    if len(table.header) != classifier.architecture.inputs:
        lacks = f" ('{missing[0]}' is missing)" if missing else ""
        raise ValueError(
            f"'{path}' has {len(table.header)} columns, expected {classifier.architecture.inputs} features "
            f"as in training, or columns with their names{lacks}"
        )
    return numbers(table, range(len(table.header)))
