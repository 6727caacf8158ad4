"""The curves of a training run as a picture."""

from __future__ import annotations

from typing import Any

from .errors import UserError

# From Okabe and Ito's palette (2008), told apart with any kind of colour vision; the labels say it again.
TRAIN, VALIDATION, TEST = "#0072B2", "#D55E00", "#007a58"
INK, FAINT = "#222222", "#dddddd"


def check() -> None:
    """A UserError if matplotlib is missing: said before the training, not after it."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise UserError("--plot needs matplotlib, which is not installed: pip install tilegrad[demo]") from None


def draw(history: list[dict[str, float]], test: dict[str, float], title: str, path: str) -> None:
    """Write a PNG with the loss and the accuracy of every epoch, and the test result at the best one."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 4.4), dpi=150, layout="constrained")
    figure.suptitle(
        f"{title}: test accuracy {test['accuracy']:.1%}",
        x=0.012,
        ha="left",
        size=15,
        color=INK,
        weight="bold",
    )
    left, right = figure.subplots(1, 2)
    _panel(left, history, test, "loss", "Loss, lower is better")
    _panel(right, history, test, "accuracy", "Accuracy, higher is better")
    right.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g}%" if value <= 1 else "")
    note = "Train: mean over the batches of the epoch, while it learns.  Test: at the lowest validation loss."
    figure.supxlabel(note, x=0.012, ha="left", size=8, color="#666666")
    figure.savefig(path, format="png", metadata={"Software": None})


def _panel(axes: Any, history: list[dict[str, float]], test: dict[str, float], what: str, title: str) -> None:
    epochs = range(1, len(history) + 1)
    train = [h[f"train_{what}"] for h in history]
    validation = [h[f"validation_{what}"] for h in history]
    marker = "o" if len(history) == 1 else ""  # one point has no line
    axes.plot(epochs, train, color=TRAIN, linewidth=2, marker=marker)
    axes.plot(epochs, validation, color=VALIDATION, linewidth=2, marker=marker)
    axes.plot(test["epoch"], test[what], "D", color=TEST, markersize=8, markeredgecolor="white", zorder=3)
    axes.set_title(title, loc="left", size=11, color=INK)
    axes.set_xlabel("epoch", color=INK)
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0, colors="#444444")
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    axes.margins(y=0.12)  # room for the label of the test result, on the side away from the lines
    number, side, extreme = (f"{test[what]:.1%}", -1, min) if what == "accuracy" else (f"{test[what]:.3f}", 1, max)
    # The label goes from the marker towards the middle, on the far side of what the lines do there.
    at, third = int(test["epoch"]) - 1, len(history) // 3
    late = 2 * at >= len(history)
    near = slice(max(0, at - third), at) if late else slice(at + 1, at + third)
    height = extreme([*train[near], *validation[near], test[what]])
    axes.annotate(
        f"test {number}", xy=(test["epoch"], height), xytext=(0, 13 * side), textcoords="offset points",
        ha="right" if late else "left", va="center", color=TEST, weight="bold",
        size=10,
    )  # fmt: skip
    _label_ends(axes, [("train", train[-1], TRAIN), ("validation", validation[-1], VALIDATION)])


def _label_ends(axes: Any, ends: list[tuple[str, float, str]]) -> None:
    """The name of each of two lines to the right of its end, pushed apart where they would overlap."""
    low, high = axes.get_ylim()
    (_, a, _), (_, b, _) = below, above = sorted(ends, key=lambda end: end[1])
    push = max(0.0, 0.065 * (high - low) - (b - a)) / 2
    for (name, value, colour), by in ((below, -push), (above, push)):
        axes.annotate(
            name, xy=(1.0, value + by), xycoords=("axes fraction", "data"), xytext=(6, 0),
            textcoords="offset points", va="center", color=colour, weight="bold", size=10,
            annotation_clip=False,
        )  # fmt: skip
