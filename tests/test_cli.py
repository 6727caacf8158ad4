"""The command `tilegrad`: training, resuming, interrupting, predicting, and the one line of every error."""

import functools
import os
import re
import signal
import struct
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner

import tilegrad
from tilegrad.cli import main
from tilegrad.cli.info import PACKAGES

QUICK = ["--hidden", "16", "--batch-size", "128"]


def run(*args, code=0):
    """Run a command in this process; its stdout, or the one line on stderr if it is to fail."""
    result = CliRunner().invoke(main, [str(a) for a in args])
    said = result.stderr if code else result.output
    assert result.exit_code == code, (result.output, result.exception)
    if not code:
        return said
    assert said.startswith("tilegrad: ")
    assert said.count("\n") == 1
    return said.removeprefix("tilegrad: ").rstrip()


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with the checkpoints of a short run on digits."""
    folder = tmp_path_factory.mktemp("trained")
    run("train", *QUICK, "--lr", 0.02, "--epochs", 3, "--out", folder)
    return folder


@pytest.fixture(scope="module")
def iris(tmp_path_factory):
    """A CSV table of three well separated classes, scales apart, and a run trained on it."""
    folder = tmp_path_factory.mktemp("iris")
    draw = np.random.default_rng(0)
    lines = ["length,kind,width"]
    for i in range(60):
        lines.append(f"{1000 * (i % 3) + draw.normal() * 50},{('rose', 'lily', 'iris')[i % 3]},{draw.normal() / 1000}")
    (folder / "iris.csv").write_text("\n".join(lines) + "\n")
    said = run(
        "train",
        "--dataset",
        f"csv:{folder / 'iris.csv'}:kind",
        "--hidden",
        "8",
        "--epochs",
        60,
        "--lr",
        0.02,
        "--out",
        folder,
    )
    assert "test accuracy 1.0000 (9 of 9 rows" in said
    return folder


# --- train --------------------------------------------------------------------------------------------------


def test_the_defaults_reach_97_percent_on_digits(here):
    said = run("train")
    assert float(re.search(r"test accuracy (\d\.\d+) ", said)[1]) >= 0.97
    assert len(re.findall(r"(?m)^epoch +\d+/40  train loss .* accuracy .*  validation loss .* accuracy", said)) == 40
    assert "1257 train, 270 validation, 270 test rows" in said
    assert sorted(p.name for p in (here / "runs" / "digits").iterdir()) == [
        "best.safetensors",
        "last.safetensors",
    ]


def test_the_test_accuracy_is_that_of_unseen_rows_at_the_best_epoch(here):
    from tilegrad.cli.sources import load_source

    overfitting = ["--dropout", 0, "--label-smoothing", 0, "--lr", 0.03, "--epochs", 20]
    said = run("train", *QUICK, *overfitting, "--seed", 3, "--out", "r")
    best, last = tilegrad.load("r/best.safetensors"), tilegrad.load("r/last.safetensors")
    losses = [h["validation_loss"] for h in last["history"]]
    assert best["epoch"] == int(np.argmin(losses)) + 1 < 20
    assert len(last["history"]) == last["epoch"] == 20
    parts = load_source("digits").split(seed=3)
    x, y = parts["test"]
    seen = {row.tobytes() for row in parts["train"][0]} | {row.tobytes() for row in parts["validation"][0]}
    assert not any(row.tobytes() in seen for row in x)
    np.save("test.npy", x)
    predicted = [line.split("\t")[1] for line in run("predict", "r/best.safetensors", "test.npy").splitlines()]
    right = sum(int(p) == t for p, t in zip(predicted, y, strict=True))
    assert f"({right} of 270 rows, at the best epoch, {best['epoch']})" in said


def test_the_seed_decides_which_rows_are_held_out():
    from tilegrad.cli.sources import load_source

    source = load_source("digits")
    first, again, other = (source.split(seed)["test"][0] for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()


@pytest.mark.parametrize(
    "options",
    [
        ["--hidden", "none"],
        ["--hidden", "12,8", "--activation", "swiglu", "--lr", "0.02"],
        ["--optimizer", "sgd", "--dropout", "0", "--label-smoothing", "0"],
        ["--optimizer", "adam", "--weight-decay", "0", "--backend", "reference"],
    ],
)
def test_options(here, options):
    said = run("train", *QUICK, "--epochs", 4, "--out", "r", *options)
    assert float(re.search(r"test accuracy (\d\.\d+) ", said)[1]) > 0.7
    saved = tilegrad.load("r/last.safetensors")
    for name, value in zip(options[::2], options[1::2], strict=True):
        kept = saved["options"][name[2:].replace("-", "_")]
        assert str(kept) == value or kept in ([], [12, 8]) or kept == float(value)


def test_the_same_seed_gives_the_same_run_and_another_another(here):
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        run("train", *QUICK, "--epochs", 1, "--seed", seed, "--out", folder)
    a, b, c = ((here / folder / "last.safetensors").read_bytes() for folder in "abc")
    assert a == b != c


def test_resumed_equals_uninterrupted(here):
    run("train", *QUICK, "--epochs", 4, "--out", "whole")
    run("train", *QUICK, "--epochs", 2, "--out", "parts")
    said = run("train", "--resume", "--out", "parts", "--epochs", 4)
    assert "resumed after epoch 2" in said
    assert "epoch   2/4" not in said
    for file in ("last.safetensors", "best.safetensors"):
        whole, parts = (tilegrad.load(here / folder / file) for folder in ("whole", "parts"))
        if file == "last.safetensors":  # best may be of an epoch whose run was to have 2
            assert (here / "whole" / file).read_bytes() == (here / "parts" / file).read_bytes()
        assert whole["history"] == parts["history"]
        for name, t in whole["model"].items():
            np.testing.assert_array_equal(t.numpy(), parts["model"][name].numpy(), strict=True)


def test_ctrl_c_leaves_a_checkpoint_that_goes_on(here):
    command = [
        sys.executable,
        "-u",
        "-m",
        "tilegrad.cli",
        "train",
        *QUICK,
        "--epochs",
        "1000",
        "--out",
        "my runs/cut",
    ]
    # A shell starts what is to run in the background with the signal ignored, and children inherit that.
    heard = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, text=True, preexec_fn=heard) as process:
        for line in process.stdout:
            if re.match(r"epoch +3/", line):
                process.send_signal(signal.SIGINT)
                break
        _, said = process.communicate()
    assert process.returncode == 130
    found = re.fullmatch(
        r"tilegrad: interrupted; 'my runs/cut/last\.safetensors' is at epoch (\d+), "
        r"go on with: tilegrad train --resume --out 'my runs/cut'\n",
        said,
    )
    assert found, said
    epoch = int(found[1])
    assert 3 <= epoch < 1000
    assert tilegrad.load("my runs/cut/last.safetensors")["epoch"] == epoch
    run("predict", "my runs/cut/last.safetensors", "digits")
    run("train", "--resume", "--out", "my runs/cut", "--epochs", epoch + 2)
    run("train", *QUICK, "--epochs", epoch + 2, "--out", "whole")
    assert (here / "my runs/cut/last.safetensors").read_bytes() == (here / "whole/last.safetensors").read_bytes()


def test_ctrl_c_before_the_first_epoch_is_over(here, monkeypatch):
    from tilegrad.cli import train

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules[train.callback.__module__].Run, "_epoch", interrupt)
    said = run("train", *QUICK, code=130)
    assert "is at epoch 0, go on with: tilegrad train --resume --out runs/digits" in said
    monkeypatch.setattr(sys.modules[train.callback.__module__].Run, "_save", interrupt)
    assert run("train", *QUICK, code=130) == "interrupted before the first checkpoint was written"
    monkeypatch.undo()
    os.chdir(here)
    assert "epoch   1/1" in run("train", "--resume", "--epochs", 1)


def test_resume_refuses_what_would_be_another_run(here, trained, iris):
    assert "no checkpoint at" in run("train", "--resume", code=2)
    last = trained / "last.safetensors"
    said = run("train", "--resume", "--out", trained, "--lr", 0.1, code=2)
    assert said.startswith(f"--lr 0.1 was given, but '{last}' was trained with 0.02: leave --lr out")
    said = run("train", "--resume", "--out", trained, "--epochs", 2, code=2)
    assert "is at epoch 3 already, expected --epochs of at least that, got 2" in said
    said = run("train", "--resume", "--out", trained, "--dataset", f"csv:{iris / 'iris.csv'}:kind", code=2)
    assert "have changed since" in said
    (here / "best").mkdir()
    (here / "best" / "last.safetensors").write_bytes((trained / "best.safetensors").read_bytes())
    assert "there is nothing to resume" in run("train", "--resume", "--out", "best", code=2)
    (here / "best" / "last.safetensors").write_bytes(last.read_bytes())
    assert "best.safetensors' is missing" in run("train", "--resume", "--out", "best", code=2)


def test_plot_draws_a_picture(here):
    image = pytest.importorskip("matplotlib.image")

    assert "curves: r/curves.png" in run("train", *QUICK, "--epochs", 5, "--out", "r", "--plot")
    pixels = image.imread("r/curves.png")[..., :3]
    height, width, _ = pixels.shape
    assert height > 400
    assert width > 1000

    def has(colour, part):
        return (np.abs(part - np.array(colour) / 255).max(-1) < 0.02).sum()

    for panel in (pixels[:, : width // 2], pixels[:, width // 2 :]):
        assert has((0x00, 0x72, 0xB2), panel) > 500  # the line of the training part, and its label
        assert has((0xD5, 0x5E, 0x00), panel) > 500
        assert has((0x00, 0x7A, 0x58), panel) > 100
        assert has((255, 255, 255), panel) > panel[..., 0].size * 0.7


def test_plot_without_matplotlib_says_so_before_training(here, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert run("train", "--plot", code=2) == (
        "--plot needs matplotlib, which is not installed: pip install tilegrad[demo]"
    )
    assert list(here.iterdir()) == []


def test_digits_without_scikit_learn(here, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert "needs scikit-learn, which is not installed: pip install tilegrad[demo]" in run("train", code=2)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--dataset", "cifar"], "there is no data set 'cifar', expected digits, mnist:FOLDER or csv:FILE"),
        (["--dataset", "mnist"], "there is no data set 'mnist', expected"),
        (["--dataset", "digits:x"], "there is no data set 'digits:x'"),
        (["--dataset", "mnist:nowhere"], "there is no folder 'nowhere'"),
        (["--dataset", "csv:nowhere.csv"], "there is no file 'nowhere.csv'"),
        (
            ["--dataset", "csv:real.csv"],
            "'real.csv': the target column holds real numbers, expected names or numbers of",
        ),
        (["--dataset", "csv:real.csv:z"], "'real.csv' has no column 'z', expected one of a, y"),
        (["--dataset", "csv:real.csv:7"], "'real.csv' has no column 7"),
        (["--dataset", "csv:one.csv"], "has 1 class, expected at least 2"),
        (["--dataset", "csv:few.csv"], "2 samples are too few"),
        (["--hidden", "12,-3"], "'12,-3', expected whole numbers above 0 with commas between them, or none"),
        (["--hidden", "a"], "'a', expected whole numbers"),
        (["--activation", "step"], "'step' is not one of"),
        (["--epochs", "0"], "0 is not in the range x>=1"),
        (["--lr", "0"], "'--lr'"),
        (["--lr", "1e30", "--optimizer", "sgd"], "in epoch 1: a smaller --lr may help"),
        (["--device", "tpu"], "expected device"),
        (["--device", "cuda:99"], "99"),
        (["--backend", "gpu"], "'gpu' is not one of"),
        (["--out", "real.csv"], "'real.csv'"),
        (["--out", "real.csv/below"], "Not a directory: 'real.csv/below'"),
        (["--speed", "9"], "'tilegrad train --help' lists what there is"),
    ],
)
def test_user_errors_of_train(here, args, message):
    (here / "real.csv").write_text("a,y\n1,0.5\n2,1.5\n")
    (here / "one.csv").write_text("a,y\n" + "1,3\n" * 20)
    (here / "few.csv").write_text("a,y\n1,3\n2,4\n")
    if args[-1] == "cuda:99" and tilegrad.storage.cuda_device_count() == 0:
        message = "device 'cuda' needs"
    assert message in run("train", "--epochs", 1, *args, code=2)


def test_a_backend_that_cannot_run_says_why(here):
    refused = [(name, why) for name, can_run, why in tilegrad.backends.describe() if not can_run]
    for name, why in refused:
        assert why in run("train", "--epochs", 1, "--backend", name, code=2)
    assert list(here.iterdir()) == []


def test_mnist_brings_its_own_test_images(here):
    draw = np.random.default_rng(0)
    for part, n in (("train", 40), ("t10k", 7)):
        images = draw.integers(0, 256, (n, 28, 28)).astype(np.uint8)
        (here / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4I", 0x803, n, 28, 28) + images.tobytes())
        (here / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, n) + bytes(i % 10 for i in range(n)))
    said = run("train", "--dataset", f"mnist:{here}", *QUICK, "--epochs", 1)
    assert "mnist: 34 train, 6 validation, 7 test rows; network 784-16-10" in said
    assert len(run("predict", "runs/mnist/best.safetensors", f"mnist:{here}").splitlines()) == 7


# --- predict ------------------------------------------------------------------------------------------------


def test_predict_a_data_set(trained):
    lines = run("predict", trained / "best.safetensors", "digits").splitlines()
    assert len(lines) == 1797
    assert re.fullmatch(r"0\t\d\t[01]\.\d{4}", lines[0])
    targets = tilegrad.data.digits().targets.tolist()
    assert sum(int(line.split("\t")[1]) == t for line, t in zip(lines, targets, strict=True)) > 1500


def test_predict_arrays(here, trained):
    x = tilegrad.data.digits().features.numpy()[:5]
    checkpoint = trained / "best.safetensors"
    want = run("predict", checkpoint, "digits").splitlines()[:5]
    for array in (x, x.reshape(5, 8, 8), x.astype(np.float64), np.asfortranarray(x)):
        np.save("x.npy", array)
        assert run("predict", checkpoint, "x.npy").splitlines() == want
    np.save("x.npy", x[0])
    assert run("predict", checkpoint, "x.npy").splitlines() == want[:1]
    np.save("x.npy", x[:0])
    assert run("predict", checkpoint, "x.npy") == ""


def test_predict_tables(here, iris):
    checkpoint = iris / "best.safetensors"
    by_spec = run("predict", checkpoint, f"csv:{iris / 'iris.csv'}:kind")
    assert by_spec == run("predict", checkpoint, iris / "iris.csv")  # its columns by their names, the target left aside
    assert [line.split("\t")[1] for line in by_spec.splitlines()] == ["rose", "lily", "iris"] * 20
    (here / "x.csv").write_text("width,length\n0.001,2000\n0,0\n")
    assert [line.split("\t")[1] for line in run("predict", checkpoint, "x.csv").splitlines()] == [
        "iris",
        "rose",
    ]
    (here / "x.csv").write_text("a,b\n1000,0\n")  # other names: the order of the training data
    assert run("predict", checkpoint, "x.csv").startswith("0\tlily\t")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("x.npy", np.zeros((3, 5)), "'x.npy' has the shape (3, 5), expected (N, 2), as in training"),
        ("x.npy", np.zeros(()), "'x.npy' has the shape (), expected (N, 2)"),
        ("x.npy", np.array([["a", "b"]]), "'x.npy' holds <U1, expected one array of real numbers"),
        ("x.npy", np.array([[0, 1], [2, np.nan]]), "'x.npy', row 1, column 1: nan, expected a finite number"),
        ("x.npy", b"not an array", "'x.npy' is not a whole .npy file of numbers"),
        ("x.npy", b"", "'x.npy' is not a whole .npy file of numbers"),
        (
            "x.csv",
            b"a,b,c\n1,2,3\n",
            "has 3 columns, expected 2 features as in training, or columns with their names",
        ),
        (
            "x.csv",
            b"length,width\n1,2\n1,wide\n",
            "'x.csv', line 3, column 'width': 'wide', expected a finite number",
        ),
        ("x.txt", b"1 2", "'x.txt': expected a file that ends in .npy or .csv, or a data set: digits, mnist"),
        ("missing.npy", None, "missing.npy"),
        ("missing.csv", None, "there is no file 'missing.csv'"),
        ("digits", None, "'digits' has 64 features in a row, expected 2 as in training"),
        ("else", None, "there is no data set 'else'"),
    ],
)
def test_user_errors_of_predict(here, iris, file, content, message):
    if isinstance(content, np.ndarray):
        np.save(file, content)
    elif content is not None:
        (here / file).write_bytes(content)
    assert message in run("predict", iris / "best.safetensors", file, code=2)


def test_predict_needs_a_checkpoint_of_ours(here, trained):
    assert "no checkpoint at" in run("predict", "missing.safetensors", "digits", code=2)
    tilegrad.save({"weight": np.zeros(3)}, "other.safetensors")
    assert "'other.safetensors' holds no classifier" in run("predict", "other.safetensors", "digits", code=2)
    (here / "cut.safetensors").write_bytes((trained / "best.safetensors").read_bytes()[:-9])
    assert "is cut short" in run("predict", "cut.safetensors", "digits", code=2)
    state = tilegrad.load(trained / "best.safetensors")
    tilegrad.save({**state, "version": 99}, "new.safetensors")
    assert "has the version 99, expected 1" in run("predict", "new.safetensors", "digits", code=2)


def test_a_reader_that_goes_away_is_no_error(trained):
    command = [sys.executable, "-m", "tilegrad.cli", "predict", str(trained / "best.safetensors"), "digits"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == ""


# --- info and the rest --------------------------------------------------------------------------------------


def test_info():
    said = run("info")
    for name in ("python", "tilegrad", *PACKAGES):
        assert re.search(rf"(?m)^  {name} +\S", said)
    assert re.search(rf"(?m)^  numpy +{re.escape(np.__version__)}$", said)
    for name, can, why in [*tilegrad.storage.devices(), *tilegrad.backends.describe()]:
        assert re.search(rf"(?m)^  {name} +{'yes' if can else 'no '} +{re.escape(why)}$", said)


def test_info_names_what_is_missing(monkeypatch):
    import importlib.metadata

    monkeypatch.setattr(importlib.metadata, "packages_distributions", dict)
    assert re.search(r"(?m)^  torch +not installed$", run("info"))


def test_the_group():
    assert "--resume" in run("train", "--help")
    assert run("--version").startswith("tilegrad, version ")
    assert "No such command 'fly'" in run("fly", code=2)
    assert run(code=2) == "Missing command. ('tilegrad --help' lists what there is)"


def test_import_tilegrad_leaves_the_heavy_things_alone():
    code = (
        "import sys, tilegrad, tilegrad.data, tilegrad.utils.data\n"
        "heavy = 'click', 'tqdm', 'safetensors', 'sklearn', 'matplotlib', 'tilegrad.cli'\n"
        "print([m for m in heavy if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
