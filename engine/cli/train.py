"""``tilegrad train``: a classifier from a data set, with checkpoints to go on from exactly as before."""

from __future__ import annotations

import math
import os
import shlex
from dataclasses import asdict, dataclass, fields
from typing import Any

import click
import numpy as np
from click.core import ParameterSource
from tqdm import tqdm

from .. import Tensor, from_numpy, manual_seed, nn, optim, save
from .. import backend as use_backend
from ..data import DataLoader, TensorDataset
from . import plot as plots
from .classifier import Architecture, Classifier, activation_names, loss_and_accuracy, read_checkpoint
from .errors import Interrupted, UserError
from .machine import BACKENDS, check_backend, check_device
from .sources import SPELLINGS, Source, load_source, short_name

# optimiser → (class, learning rate and weight decay unless given, its other options). The rates: the lowest validation
# loss on digits, mean of seeds 0 to 4, of 5e-4, 1e-3, 2e-3 and 4e-3 for Adam and AdamW (8e-3 too for AdamW) and of
# 0.01, 0.02, 0.05, 0.1 and 0.2 for SGD. Only AdamW's decay is apart from the gradient: the others learn worse from
# 0.01 than from 1e-4.
OPTIMIZERS: dict[str, tuple[Any, float, float, dict[str, float]]] = {
    "adamw": (optim.AdamW, 4e-3, 0.01, {}),
    "adam": (optim.Adam, 4e-3, 1e-4, {}),
    "sgd": (optim.SGD, 0.1, 1e-4, {"momentum": 0.9}),
}
MAY_CHANGE = ("epochs", "device", "backend")  # when a run is resumed: they are not part of what is trained


@dataclass
class Options:
    """What decides the result of a run, up to rounding: it stands in the checkpoint."""

    dataset: str
    hidden: list[int]
    activation: str
    dropout: float
    epochs: int
    batch_size: int
    optimizer: str
    lr: float | None  # None: the optimiser's own, filled in when the run begins; so with weight_decay
    weight_decay: float | None
    label_smoothing: float
    seed: int
    device: str
    backend: str


class Widths(click.ParamType):
    """Positive widths with commas between them; "none" for no hidden layer."""

    name = "widths"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        """``"256,128"`` → [256, 128]."""
        if isinstance(value, list):
            return value
        words = [] if value == "none" else value.split(",")
        if not all(word.strip().isdigit() and int(word) > 0 for word in words):
            self.fail(f"'{value}', expected whole numbers above 0 with commas between them, or none", param, ctx)
        return [int(word) for word in words]


@click.command()
@click.option("--dataset", default="digits", help=SPELLINGS)
@click.option("--hidden", type=Widths(), default="256", help="Widths of the hidden layers, such as 256,128, or none.")
@click.option(
    "--activation",
    type=click.Choice(activation_names()),
    default="relu",
    metavar="NAME",
    help=", ".join(activation_names()),
)
@click.option("--dropout", type=click.FloatRange(0, 1, max_open=True), default=0.3)
@click.option("--epochs", type=click.IntRange(1), default=40)
@click.option("--batch-size", type=click.IntRange(1), default=32)
@click.option("--optimizer", type=click.Choice(list(OPTIMIZERS)), default="adamw")
@click.option("--lr", type=click.FloatRange(0, min_open=True), help="Learning rate.  [default: the optimiser's]")
@click.option("--weight-decay", type=click.FloatRange(0), help="[default: the optimiser's]")
@click.option("--label-smoothing", type=click.FloatRange(0, 1), default=0.1)
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    help="Decides the split, the weights, and the order of batches.",
)
@click.option("--device", default="cpu", help="cpu, cuda or cuda:N")
@click.option("--backend", type=click.Choice(BACKENDS), default="auto", help="What computes the fused operations.")
@click.option("--out", type=click.Path(file_okay=False), help="Folder for the results.  [default: runs/DATASET]")
@click.option("--resume", is_flag=True, help="Go on from the folder's last checkpoint, with its options.")
@click.option("--plot", is_flag=True, help="Draw the curves of loss and accuracy to curves.png in the folder.")
@click.pass_context
def train(ctx: click.Context, out: str | None, resume: bool, plot: bool, **given: Any) -> None:
    """Train a multilayer perceptron on a data set, and test it on rows that it has never seen.

    The folder gets best.safetensors (the epoch with the lowest validation loss; for 'tilegrad predict') and
    last.safetensors (for --resume, which continues exactly as if there had been no interruption).
    """
    options = Options(**given)
    folder = out or os.path.join("runs", short_name(options.dataset))
    state = None
    if resume:
        state = _resumed(ctx, folder, options)
    else:
        _, lr, weight_decay, _ = OPTIMIZERS[options.optimizer]
        options.lr = lr if options.lr is None else options.lr
        options.weight_decay = weight_decay if options.weight_decay is None else options.weight_decay
    check_device(options.device)
    check_backend(options.backend)
    if plot:
        plots.check()
    source = load_source(options.dataset)
    if state is not None and state["checksum"] != source.checksum:
        raise UserError(
            f"the data of '{options.dataset}' have changed since '{folder}' was trained on them: train afresh"
        )
    run = Run(options, source, folder)
    try:
        with use_backend(options.backend):
            run.start(state)
            run.fit()
            test = run.test()
        if plot:
            plots.draw(run.history, test, source.name, os.path.join(folder, "curves.png"))
            click.echo(f"curves: {os.path.join(folder, 'curves.png')}")
    except KeyboardInterrupt:
        raise Interrupted(run.farewell()) from None


def _resumed(ctx: click.Context, folder: str, options: Options) -> dict[str, Any]:
    """The state in the folder; ``options`` become those of its run, except what may change and was given."""
    path = os.path.join(folder, "last.safetensors")
    state = read_checkpoint(path)
    if "optimizer" not in state:
        raise UserError(f"'{path}' was not written as a last checkpoint: there is nothing to resume")
    for field in fields(Options):
        given, trained = getattr(options, field.name), state["options"][field.name]
        explicit = ctx.get_parameter_source(field.name) == ParameterSource.COMMANDLINE
        if explicit and field.name in MAY_CHANGE:
            continue
        # Another spelling of the data set may be the same data, moved: its checksum is compared later.
        if explicit and given != trained and field.name != "dataset":
            name = field.name.replace("_", "-")
            raise UserError(
                f"--{name} {given} was given, but '{path}' was trained with {trained}: "
                f"leave --{name} out to resume, or --resume to train afresh"
            )
        if not (explicit and field.name == "dataset"):
            setattr(options, field.name, trained)
    if options.epochs < state["epoch"]:
        raise UserError(
            f"'{path}' is at epoch {state['epoch']} already, expected --epochs of at least that, got {options.epochs}"
        )
    return state


class Run:
    """One training run: the data on their device, the network, the optimiser, and what happened so far."""

    def __init__(self, options: Options, source: Source, folder: str):
        self.options, self.source, self.folder = options, source, folder
        self.history: list[dict[str, float]] = []  # per epoch
        self.saved: int | None = None  # the epoch that last.safetensors holds, once it is of this run

        parts = source.split(options.seed)
        x = parts["train"][0]
        # Pixels share one scale, which keeps rarely inked ones small; the columns of a table have one each.
        axis = None if source.same_unit else 0
        mean = np.broadcast_to(x.mean(axis, dtype=np.float64), x.shape[1:]).astype(np.float32)
        spread = np.broadcast_to(x.std(axis, dtype=np.float64), x.shape[1:]).astype(np.float32)
        scale = np.where(spread > 0, spread, np.float32(1))  # a constant column becomes 0

        manual_seed(options.seed)
        architecture = Architecture(
            x.shape[1], options.hidden, len(source.classes), options.activation, options.dropout
        )
        network = architecture.build().to(options.device)
        self.classifier = Classifier(architecture, network, mean, scale, source.classes, source.feature_names)
        kind, _, _, others = OPTIMIZERS[options.optimizer]
        self.optimizer = kind(network.parameters(), lr=options.lr, weight_decay=options.weight_decay, **others)
        self.parts = {name: self._tensors(*part) for name, part in parts.items()}
        self.loader = DataLoader(
            TensorDataset(*self.parts["train"]), options.batch_size, shuffle=True, seed=options.seed
        )

    def _tensors(self, features: np.ndarray, targets: np.ndarray) -> tuple[Tensor, Tensor]:
        x = from_numpy(self.classifier.standardised(features))
        return x.to(self.options.device), from_numpy(targets).to(self.options.device)

    @property
    def best(self) -> int:
        """The epoch with the lowest validation loss, from 1; 0 before the first."""
        losses = [h["validation_loss"] for h in self.history]
        return losses.index(min(losses)) + 1 if losses else 0

    def path(self, name: str) -> str:
        """A file in the run's folder."""
        return os.path.join(self.folder, name)

    def start(self, state: dict[str, Any] | None) -> None:
        """Take over a checkpoint's state, or write the first checkpoint, so that there always is one."""
        if state is None:
            os.makedirs(self.folder, exist_ok=True)
            self._save()
        else:
            self.classifier.network.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.history = state["history"]
            self.saved = len(self.history)
            if self.history and not os.path.isfile(self.path("best.safetensors")):
                raise UserError(f"'{self.path('best.safetensors')}' is missing, expected it beside last.safetensors")
        sizes = ", ".join(f"{len(y)} {name}" for name, (_, y) in self.parts.items())
        widths = "-".join(
            map(
                str,
                (
                    self.classifier.architecture.inputs,
                    *self.options.hidden,
                    self.classifier.architecture.outputs,
                ),
            )
        )
        click.echo(
            f"{self.source.name}: {sizes} rows; network {widths}, {self.options.activation}; {self.options.device}"
        )
        if self.history:
            click.echo(f"resumed after epoch {len(self.history)}")

    def fit(self) -> None:
        """Train until ``options.epochs``; after each epoch one line, and checkpoints."""
        for epoch in range(len(self.history) + 1, self.options.epochs + 1):
            train_loss, train_accuracy = self._epoch(epoch)
            loss, accuracy = loss_and_accuracy(
                self.classifier.network, *self.parts["validation"], self.options.label_smoothing
            )
            if not (math.isfinite(train_loss) and math.isfinite(loss)):
                raise UserError(f"the loss became {train_loss} in epoch {epoch}: a smaller --lr may help")
            self.history.append(
                {
                    "train_loss": train_loss,
                    "train_accuracy": train_accuracy,
                    "validation_loss": loss,
                    "validation_accuracy": accuracy,
                }
            )
            self._save()
            click.echo(
                f"epoch {epoch:3d}/{self.options.epochs}  "
                f"train loss {train_loss:.4f} accuracy {train_accuracy:.4f}  "
                f"validation loss {loss:.4f} accuracy {accuracy:.4f}{'  best' if self.best == epoch else ''}"
            )

    def _epoch(self, epoch: int) -> tuple[float, float]:
        """One pass over the training part; the mean loss and the accuracy of its batches as they came."""
        network = self.classifier.network.train()
        # Order of batches and dropout depend on seed and epoch only: so a resumed run repeats this one.
        self.loader.set_epoch(epoch)
        manual_seed(int(np.random.SeedSequence((self.options.seed, epoch)).generate_state(1)[0]))
        loss, right, rows = 0.0, 0, 0
        with tqdm(
            self.loader, f"epoch {epoch:3d}/{self.options.epochs}", leave=False, disable=None, unit="batch"
        ) as bar:
            for x, y in bar:
                logits = network(x)
                batch_loss = nn.functional.cross_entropy(logits, y, label_smoothing=self.options.label_smoothing)
                self.optimizer.zero_grad()
                batch_loss.backward()
                self.optimizer.step()
                loss += batch_loss.item() * len(y)
                right += int((logits.argmax(1) == y).sum().item())
                rows += len(y)
        return loss / rows, right / rows

    def _save(self) -> None:
        """The best first: if the process dies between the two, the epoch is repeated and writes it again."""
        state = {
            **self.classifier.state(),
            "epoch": len(self.history),
            "history": self.history,
            "options": asdict(self.options),
            "checksum": self.source.checksum,
        }
        if self.history and self.best == len(self.history):
            save(state, self.path("best.safetensors"))
        save({**state, "optimizer": self.optimizer.state_dict()}, self.path("last.safetensors"))
        self.saved = len(self.history)

    def test(self) -> dict[str, float]:
        """Judge the best checkpoint on the held-out test part."""
        best = Classifier.from_state(read_checkpoint(self.path("best.safetensors")), self.options.device)
        x, y = self.parts["test"]
        loss, accuracy = loss_and_accuracy(best.network, x, y, self.options.label_smoothing)
        click.echo(
            f"test accuracy {accuracy:.4f} ({round(accuracy * len(y))} of {len(y)} rows, "
            f"at the best epoch, {self.best})"
        )
        click.echo(f"checkpoint: {self.path('best.safetensors')}")
        return {"epoch": self.best, "loss": loss, "accuracy": accuracy}

    def farewell(self) -> str:
        """What Ctrl-C leaves, and how to go on."""
        if self.saved is None:
            return "interrupted before the first checkpoint was written"
        command = f"tilegrad train --resume --out {shlex.quote(self.folder)}"
        return f"interrupted; '{self.path('last.safetensors')}' is at epoch {self.saved}, go on with: {command}"
