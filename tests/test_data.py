"""Datasets, splits, loaders, readers of data sets: values, torch's behaviour, and every error's message."""

import gzip
import struct

import numpy as np
import pytest
import torch

import tilegrad
from tilegrad.data import LabelledDataset, csv, digits, mnist, train_validation_test_split
from tilegrad.utils.data import DataLoader, Dataset, Subset, TensorDataset, default_collate, random_split


def table(n=10, width=3):
    x = np.arange(n * width, dtype=np.float32).reshape(n, width)
    return TensorDataset(tilegrad.from_numpy(x), tilegrad.from_numpy(np.arange(n)))


def rows(loader):
    """The second tensor of every batch of a pass, one list per batch."""
    return [y.tolist() for _, y in loader]


def flat(lists):
    return [value for part in lists for value in part]


class Squares(Dataset):
    def __len__(self):
        return 7

    def __getitem__(self, index):
        return np.full(2, index, np.float32), index**2


# --- TensorDataset, Subset ----------------------------------------------------------------------------------


def test_tensor_dataset():
    dataset = table()
    x, y = dataset[4]
    assert len(dataset) == 10
    assert (x.tolist(), y.item()) == ([12, 13, 14], 4)
    assert dataset[2:4][1].tolist() == [2, 3]
    with pytest.raises(ValueError, match=r"same first dimension, got shapes \(3,\), \(2, 2\)"):
        TensorDataset(tilegrad.zeros(3), tilegrad.zeros(2, 2))
    with pytest.raises(ValueError, match=r"got shapes \(\)"):
        TensorDataset(tilegrad.tensor(1.0))
    with pytest.raises(ValueError, match="got none"):
        TensorDataset()
    with pytest.raises(TypeError, match="expected Tensors, got ndarray"):
        TensorDataset(np.zeros(3))


def test_a_dataset_that_defines_nothing():
    with pytest.raises(NotImplementedError, match="a Dataset defines __getitem__"):
        Dataset()[0]
    with pytest.raises(TypeError, match="expected a dataset with __len__ and __getitem__, got Dataset"):
        DataLoader(Dataset())


def test_subset_of_subset():
    inner = Subset(table(), [9, 7, 5, 3])
    outer = Subset(inner, [3, 0])
    assert [outer[i][1].item() for i in range(2)] == [3, 9]
    assert outer[[1, 0]][1].tolist() == [9, 3]
    assert rows(DataLoader(outer, 2)) == [[3, 9]]


# --- splits -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "lengths"),
    [
        (10, [7, 3]),
        (10, [0.5, 0.3, 0.2]),
        (7, [0.5, 0.5]),
        (10, [1 / 3] * 3),
        (11, [0.1] * 10),
        (5, [1]),
        (12, [0.7, 0.2, 0.1]),
    ],
)
def test_random_split_has_torchs_lengths(size, lengths):
    parts = random_split(table(size), lengths)
    theirs = torch.utils.data.random_split(range(size), lengths)
    assert [len(p) for p in parts] == [len(p) for p in theirs]
    assert sorted(i for p in parts for i in p.indices) == list(range(size))


def test_random_split_follows_its_generator():
    def split(generator):
        return random_split(table(100), [50, 50], generator)[0].indices

    assert split(3) == split(3) != split(4)
    seeded = tilegrad.Generator().manual_seed(3)
    assert split(tilegrad.Generator().manual_seed(3)) == split(seeded) != split(seeded)
    tilegrad.manual_seed(0)
    first = split(None)
    assert split(None) != first
    tilegrad.manual_seed(0)
    assert split(None) == first
    assert first != sorted(first)
    with pytest.raises(TypeError, match=r"a tilegrad\.Generator or a seed, got str"):
        split("seed")


@pytest.mark.parametrize("lengths", [[5, 4], [11], [5.5, 4.5], [12, -2], [0.5, 0.4]])
def test_random_split_refuses(lengths):
    with pytest.raises(ValueError, match="expected the 10 samples of the dataset, or fractions that add up to 1"):
        random_split(table(), lengths)
    with pytest.raises(ValueError, match=r"expected fractions from 0 to 1, got 1\.5"):
        random_split(table(), [1.5, -0.5])


def test_three_parts():
    parts = train_validation_test_split(table(100), 0.2, 0.1, seed=1)
    assert [len(p) for p in parts] == [70, 20, 10]
    assert sorted(i for p in parts for i in p.indices) == list(range(100))
    assert [p.indices for p in parts] == [p.indices for p in train_validation_test_split(table(100), 0.2, 0.1, seed=1)]
    assert parts[0].indices != train_validation_test_split(table(100), 0.2, 0.1, seed=2)[0].indices
    with pytest.raises(ValueError, match=r"sum below 1, got validation=0\.5 and test=0\.5"):
        train_validation_test_split(table(), 0.5, 0.5)
    with pytest.raises(ValueError, match="2 samples are too few"):
        train_validation_test_split(table(2))


# --- DataLoader ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 9, 10, 12])
@pytest.mark.parametrize("batch_size", [1, 3, 10, 50])
@pytest.mark.parametrize("drop_last", [False, True])
def test_batches_are_torchs(n, batch_size, drop_last):
    ours = DataLoader(table(n), batch_size, drop_last=drop_last)
    theirs = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.arange(3.0 * n).reshape(n, 3), torch.arange(n)),
        batch_size,
        drop_last=drop_last,
    )
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert type(a) is type(b) is list
        assert [t.tolist() for t in a] == [t.tolist() for t in b]
        assert [str(t.dtype).split(".")[1] for t in a] == [str(t.dtype).split(".")[1] for t in b]


def test_every_pass_is_shuffled_anew():
    loader = DataLoader(table(50), 8, shuffle=True)
    first, second = flat(rows(loader)), flat(rows(loader))
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second != list(range(50))
    for x, y in loader:  # features and targets stay together
        assert (x.numpy()[:, 0] == 3 * y.numpy()).all()


def test_the_seed_decides_the_order_of_every_pass():
    passes = [rows(DataLoader(table(50), 8, shuffle=True, seed=5)) for _ in range(2)]
    assert passes[0] == passes[1]
    loader = DataLoader(table(50), 8, shuffle=True, seed=5)
    three = [rows(loader) for _ in range(3)]
    assert three[0] == passes[0]
    assert three[0] != three[1] != three[2]
    again = DataLoader(table(50), 8, shuffle=True, seed=5)
    again.set_epoch(2)
    assert rows(again) == three[2]
    assert rows(DataLoader(table(50), 8, shuffle=True, seed=6)) != three[0]


def test_without_a_seed_the_generators_decide():
    def passes(**options):
        loader = DataLoader(table(50), 8, shuffle=True, **options)
        return [rows(loader) for _ in range(2)]

    tilegrad.manual_seed(1)
    first = passes()
    tilegrad.manual_seed(1)
    assert passes() == first
    a = passes(generator=tilegrad.Generator().manual_seed(2))
    assert a == passes(generator=tilegrad.Generator().manual_seed(2))
    assert a != first


def test_subsets_go_the_fast_way_with_the_same_result():
    part = Subset(Subset(table(20), list(range(0, 20, 2))), [5, 1, 7, -1])
    want = [[part[i][1].item() for i in (0, 1, 2)], [part[3][1].item()]]
    assert rows(DataLoader(part, 3)) == want
    assert rows(DataLoader(part, 3, collate_fn=default_collate)) == want
    assert sorted(flat(rows(DataLoader(part, 3, shuffle=True)))) == sorted(flat(want))


def test_a_changed_getitem_is_seen():
    class Doubled(TensorDataset):
        def __getitem__(self, index):
            x, y = super().__getitem__(index)
            return x * 2, y

    x, y = next(iter(DataLoader(Subset(Doubled(*table().tensors), [1, 2]), 2)))
    assert (x.tolist(), y.tolist()) == ([[6, 8, 10], [12, 14, 16]], [1, 2])


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_batch_is_a_copy(shuffle):
    dataset = table()
    for x, _ in DataLoader(dataset, 4, shuffle=shuffle):
        x.zero_()
    assert dataset.tensors[0].numpy().sum() == np.arange(30).sum()


def test_samples_of_any_dataset():
    x, y = next(iter(DataLoader(Squares(), 3)))
    assert (x.shape, x.dtype, y.tolist(), y.dtype) == ((3, 2), tilegrad.float32, [0, 1, 4], tilegrad.int64)
    pairs = list(DataLoader(Squares(), 4, collate_fn=lambda samples: [s[1] for s in samples]))
    assert pairs == [[0, 1, 4, 9], [16, 25, 36]]


def test_collate_as_torch_does():
    def structure(value):
        if isinstance(value, (tilegrad.Tensor, torch.Tensor)):
            return str(value.dtype).split(".")[1], value.tolist()
        if isinstance(value, dict):
            return {k: structure(v) for k, v in value.items()}
        return [structure(v) for v in value] if isinstance(value, (list, tuple)) else value

    samples = [
        {"a": (1, 2.5), "b": np.float32(3), "c": "x", "d": [True, np.arange(2)]},
        {"a": (4, 5.5), "b": np.float32(6), "c": "y", "d": [False, np.arange(2)]},
    ]
    assert structure(default_collate(samples)) == structure(torch.utils.data.default_collate(samples))
    with pytest.raises(TypeError, match=r"expected samples of tensors, .* got object"):
        default_collate([object()])
    with pytest.raises(ValueError, match=r"samples of \[1, 2\] values, expected one length"):
        default_collate([(1,), (1, 2)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "expected batch_size to be an integer of at least 1, got 0"),
        ({"batch_size": 2.0}, r"at least 1, got 2\.0"),
        ({"batch_size": None}, "at least 1, got None"),
        ({"num_workers": -1}, "expected num_workers not to be negative, got -1"),
        ({"seed": 1, "generator": tilegrad.Generator()}, "expected a seed or a generator, got both: seed=1"),
    ],
)
def test_loader_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        DataLoader(table(), **options)


# --- data sets ----------------------------------------------------------------------------------------------


def test_digits():
    dataset = digits()
    assert dataset.features.shape == (1797, 64)
    assert dataset.features.dtype == tilegrad.float32
    assert (dataset.features.min().item(), dataset.features.max().item()) == (0, 1)
    assert dataset.targets.dtype == tilegrad.int64
    assert dataset.targets[:10].tolist() == list(range(10))
    assert dataset.classes == tuple("0123456789")
    assert len(dataset.feature_names) == 64


def idx(array):
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


IMAGES = np.random.default_rng(0).integers(0, 256, (5, 28, 28)).astype(np.uint8)
LABELS = np.array([3, 0, 9, 9, 1], np.uint8)


@pytest.fixture
def folder(tmp_path):
    for part, n in (("train", 5), ("t10k", 2)):
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(idx(IMAGES[:n]))
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(idx(LABELS[:n]))
    return tmp_path


def test_mnist(folder):
    dataset = mnist(folder)
    assert dataset.features.shape == (5, 1, 28, 28)
    np.testing.assert_array_equal(dataset.features.numpy()[:, 0], IMAGES.astype(np.float32) / 255)
    assert dataset.targets.tolist() == LABELS.tolist()
    assert len(mnist(str(folder), train=False)) == 2


def test_mnist_compressed_and_in_torchvisions_folder(folder, tmp_path):
    raw = tmp_path / "other" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for file in folder.glob("*ubyte"):
        (raw / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
    np.testing.assert_array_equal(mnist(tmp_path / "other").features.numpy(), mnist(folder).features.numpy())


@pytest.mark.parametrize(
    ("file", "blob", "message"),
    [
        ("images-idx3", b"", "starts with the bytes of an empty file, expected 00 00 08 03"),
        ("images-idx3", idx(LABELS), "starts with the bytes 00 00 08 01, expected 00 00 08 03"),
        (
            "labels-idx1",
            b"\x00\x00\x0d\x01" + bytes(8),
            "starts with the bytes 00 00 0d 01, expected 00 00 08 01",
        ),
        ("images-idx3", idx(IMAGES)[:9], "is cut short: 9 bytes, expected a header of 16"),
        (
            "images-idx3",
            idx(IMAGES)[:-1],
            r"is cut short: 3935 bytes, expected 3936 for the sizes \(5, 28, 28\)",
        ),
        ("images-idx3", idx(IMAGES) + b"x", "has bytes left over: 3937 bytes, expected 3936"),
        ("images-idx3", idx(IMAGES[:, :27]), "holds images of 27x28 pixels, expected 28x28"),
        ("labels-idx1", idx(LABELS[:4]), r"has 4 labels, expected 5, one for each of '.*images-idx3-ubyte'"),
        ("labels-idx1", idx(LABELS + 1), "label 2 is 10, expected 0 to 9"),
    ],
)
def test_mnist_refuses(folder, file, blob, message):
    (folder / f"train-{file}-ubyte").write_bytes(blob)
    with pytest.raises(ValueError, match=f"'.*train-{'.*' if 'labels, exp' in message else file}.*{message}"):
        mnist(folder)


def test_mnist_missing_or_broken_files(folder):
    images = folder / "train-images-idx3-ubyte"
    compressed = gzip.compress(images.read_bytes())
    images.unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no 'train-images-idx3-ubyte', neither plain nor with '\.gz'"):
        mnist(folder)
    with pytest.raises(FileNotFoundError, match=r"there is no folder '.*nowhere'"):
        mnist(folder / "nowhere")
    for blob in (compressed[:-20], b"no gzip", compressed[:50] + b"\xff" * 50 + compressed[100:]):
        (folder / "train-images-idx3-ubyte.gz").write_bytes(blob)
        with pytest.raises(ValueError, match=r"'.*idx3-ubyte\.gz' is not a whole gzip file"):
            mnist(folder)


@pytest.fixture
def write(tmp_path):
    def write(text, encoding="utf-8"):
        path = tmp_path / "t.csv"
        path.write_bytes(text.encode(encoding))
        return path

    return write


def test_csv_with_names_of_classes(write):
    path = write('\ufeffwidth, kind ,"height, mm"\r\n1,rose,2.5\r\n\r\n-3e1,"lily, white",4\r\n5,rose,6\r\n')
    dataset = csv(path, "kind")
    assert isinstance(dataset, LabelledDataset)
    assert dataset.features.tolist() == [[1, 2.5], [-30, 4], [5, 6]]
    assert dataset.features.dtype == tilegrad.float32
    assert dataset.classes == ("lily, white", "rose")
    assert dataset.targets.tolist() == [1, 0, 1]
    assert dataset.feature_names == ("width", "height, mm")


def test_csv_targets(write):
    path = write("a,b,y\n1,2,10\n3,4,9\n5,6,10\n")
    assert csv(path).classes == ("9", "10")  # in the order of numbers, not of letters
    assert csv(path).targets.tolist() == [1, 0, 1]
    assert csv(path, 0).classes == ("1", "3", "5")
    assert csv(path, -3).features.tolist() == [[2, 10], [4, 9], [6, 10]]
    regression = csv(path, task="regression")
    assert (regression.targets.tolist(), regression.targets.dtype) == ([10, 9, 10], tilegrad.float32)
    assert regression.classes == ()
    path = write("a,y\n1,0.5\n2,2\n")
    assert csv(path).targets.tolist() == [0.5, 2]
    assert csv(path, task="classification").classes == ("0.5", "2")


@pytest.mark.parametrize(
    ("text", "target", "message"),
    [
        ("", -1, "is empty, expected a header line"),
        ("a,y\n", -1, "has a header line only"),
        ("1,2\n3,4\n", -1, "line 1: numbers, expected a header line"),
        ("a,a\n3,4\n", -1, "line 1: 2 columns are called 'a', expected one"),
        ("a,b,y\n1,2,3\n1,2\n", -1, "line 3: 2 columns, expected 3 as in the header"),
        ("a,b,y\n1,2,3\n\n1,2,3,4\n", -1, "line 4: 4 columns, expected 3"),
        ("a,b,y\n1,2,3\n1,tall,3\n", -1, "line 3, column 'b': 'tall', expected a finite number"),
        ("a,b,y\n1, ,3\n1,tall,3\n", -1, "line 2, column 'b': empty, expected a finite number"),
        ("a,b,y\n1,1,3\nnan,x,3\n", -1, "line 3, column 'a': 'nan', expected a finite number"),
        ("a,b,y\n1,1,3\n1e60,2,3\n", -1, "line 3, column 'a': '1e60', expected a finite number"),
        ("a,b,y\n1,2,x\n1,2,\n", -1, "line 3, column 'y': empty, expected a target"),
        ("a,b,y\n1,2,0.5\n1,2,inf\n", -1, "line 3, column 'y': 'inf', expected a finite number"),
        ("a,b,y\n1,2,3\n", "z", "has no column 'z', expected one of a, b, y"),
        ("a,b,y\n1,2,3\n", 3, "has no column 3, expected -3 to 2"),
        ("y\n1\n", -1, "has only the column 'y', expected features beside the target"),
    ],
)
def test_csv_refuses(write, text, target, message):
    with pytest.raises(ValueError, match=rf"'.*t\.csv'.*{message}"):
        csv(write(text), target)


def test_csv_other_errors(write, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file '.*no\.csv', expected a CSV table"):
        csv(tmp_path / "no.csv")
    with pytest.raises(ValueError, match="is not a CSV file in UTF-8"):
        csv(write("größe,y\n1,2\n", "latin-1"))
    with pytest.raises(ValueError, match="expected task 'auto', 'classification' or 'regression', got 'guess'"):
        csv(write("a,y\n1,2\n"), task="guess")
