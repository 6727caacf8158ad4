"""The classifier that ``train`` writes and ``predict`` reads: a network, its input's scale, its classes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .. import Tensor, from_numpy, load, nn, no_grad
from ..activations import ACTIVATIONS
from .errors import UserError, user_errors

KIND = "tilegrad classifier"
VERSION = 1
ROWS_AT_ONCE = 4096  # bounds the memory of an evaluation


@dataclass
class Architecture:
    """A multilayer perceptron: inputs → each of ``hidden`` with the activation and dropout → outputs."""

    inputs: int
    hidden: list[int]
    outputs: int
    activation: str
    dropout: float

    def build(self) -> nn.Sequential:
        """The network, with fresh weights from the global generator."""
        layers: list[nn.Module] = []
        width = self.inputs
        for features in self.hidden:
            layers.append(nn.Linear(width, features, activation=self.activation))
            if self.dropout:
                layers.append(nn.Dropout(self.dropout))
            width = features
        return nn.Sequential(*layers, nn.Linear(width, self.outputs))


@dataclass
class Classifier:
    """A network with what it takes to use it on new data."""

    architecture: Architecture
    network: nn.Sequential
    mean: np.ndarray  # (D,) float32
    scale: np.ndarray  # (D,) float32, above 0
    classes: list[str]
    feature_names: list[str]

    def standardised(self, features: np.ndarray) -> np.ndarray:
        """The network's input for raw features, (N, D) float32."""
        return np.asarray((features - self.mean) / self.scale, np.float32)

    def probabilities(self, features: np.ndarray, device: str) -> np.ndarray:
        """(N, D) raw features → (N, classes)."""
        self.network.eval()
        parts = []
        with no_grad():
            for start in range(0, len(features), ROWS_AT_ONCE):
                x = from_numpy(self.standardised(features[start : start + ROWS_AT_ONCE])).to(device)
                parts.append(nn.functional.softmax(self.network(x), dim=1).numpy(force=True))
        return np.concatenate(parts) if parts else np.empty((0, len(self.classes)), np.float32)

    def state(self) -> dict[str, Any]:
        """Everything, for ``tilegrad.save``."""
        return {
            "kind": KIND,
            "version": VERSION,
            "architecture": asdict(self.architecture),
            "input": {"mean": self.mean, "scale": self.scale, "names": self.feature_names},
            "classes": self.classes,
            "model": self.network.state_dict(),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any], device: str) -> Classifier:
        """The classifier that ``state`` gave."""
        architecture = Architecture(**state["architecture"])
        network = architecture.build()
        network.load_state_dict(state["model"])
        given = state["input"]
        return cls(
            architecture,
            network.to(device),
            given["mean"],
            given["scale"],
            list(state["classes"]),
            list(given["names"]),
        )


def read_checkpoint(path: str) -> dict[str, Any]:
    """The contents of a checkpoint that ``train`` wrote; a UserError if it is anything else."""
    with user_errors(ValueError, OSError):
        state = load(path)
    if not isinstance(state, dict) or state.get("kind") != KIND:
        raise UserError(f"'{path}' holds no classifier, expected a checkpoint that 'tilegrad train' wrote")
    if state["version"] != VERSION:
        raise UserError(f"'{path}' has the version {state['version']}, expected {VERSION}: train it again")
    return state


def activation_names() -> list[str]:
    """The activations a hidden layer can have."""
    return list(ACTIVATIONS)


def loss_and_accuracy(network: nn.Module, x: Tensor, y: Tensor, label_smoothing: float) -> tuple[float, float]:
    """The mean cross-entropy of a part of the data, and the fraction of its rows that are right."""
    network.eval()
    loss, right = 0.0, 0
    with no_grad():
        for start in range(0, len(x), ROWS_AT_ONCE):
            logits, target = network(x[start : start + ROWS_AT_ONCE]), y[start : start + ROWS_AT_ONCE]
            summed = nn.functional.cross_entropy(logits, target, reduction="sum", label_smoothing=label_smoothing)
            loss += summed.item()
            right += int((logits.argmax(1) == target).sum().item())
    return loss / len(x), right / len(x)
