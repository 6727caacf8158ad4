"""tilegrad.save and tilegrad.load: what comes back, what is refused, and what a killed process leaves."""

import io
import json
import os
import signal
import struct
import subprocess
import sys
import textwrap

import ml_dtypes
import numpy as np
import pytest

import tilegrad
from tilegrad import nn, optim
from tilegrad.storage import DTYPES


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def same(a, b):
    """Equal in type, dtype, shape and bytes, through all nesting."""
    assert type(a) is type(b)
    if isinstance(a, tilegrad.Tensor):
        a, b = a._array, b._array
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_nesting_and_plain_values_come_back(path):
    array = np.arange(6.0).reshape(2, 3)
    obj = {
        "model": {
            "0.weight": tilegrad.from_numpy(array.astype(np.float32)),
            "0.bias": tilegrad.tensor([1, 2]),
        },
        "model/0.weight": array,  # the name that the nested one gets in the file
        "state": {0: {"step": 3, "momentum": array + 1}, "0": {"step": True, "momentum": array + 2}},
        "options": {
            "lr": 0.1 + 0.2,
            "betas": (0.9, 0.999),
            "name": 'sep/arator "ü"',
            "none": None,
            "inf": float("inf"),
        },
        "history": [{"loss": 1e-300}, {"loss": 2.5}, []],
        "$tensor": "looks like a marker",
        "marker": {"$array": [array, (array * 2,)]},
        1.5: {},
    }
    tilegrad.save(obj, path)
    assert same(tilegrad.load(path), obj)


def test_numpy_scalars_come_back_as_numbers(path):
    tilegrad.save({"a": np.float32(0.5), "b": np.int64(7), "c": np.bool_(True)}, path)
    assert same(tilegrad.load(path), {"a": 0.5, "b": 7, "c": True})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_and_shape(path, dtype):
    for shape in [(), (0,), (3, 0, 2), (5,), (2, 3, 4)]:
        values = np.random.default_rng(0).integers(0, 2, shape) * 3
        t = tilegrad.from_numpy(np.asarray(values).astype(dtype.dtype))
        tilegrad.save(t, path)
        assert same(tilegrad.load(path), t)


@pytest.mark.parametrize(
    "layout",
    [
        lambda a: np.asfortranarray(a),
        lambda a: a.T,
        lambda a: a[:, ::2],
        lambda a: a[::-1],
        lambda a: a[1:, 1:],
        lambda a: np.broadcast_to(a[0], (3, 6)),
        lambda a: a.astype(">f4"),
    ],
    ids=["fortran", "transposed", "strided", "reversed", "offset", "expanded", "big-endian"],
)
def test_any_layout_is_saved_right(path, layout):
    array = layout(np.arange(24, dtype=np.float32).reshape(4, 6))
    tilegrad.save({"x": array}, path)
    back = tilegrad.load(path)["x"]
    assert back.shape == array.shape
    np.testing.assert_array_equal(back, array)
    assert back.flags.writeable


def test_wrong_bytes_from_safetensors_are_noticed(path, monkeypatch):
    import safetensors.numpy

    serialize = safetensors.numpy.save
    tilegrad.save({"x": np.arange(6.0)}, path)
    before = path.read_bytes()
    monkeypatch.setattr(
        safetensors.numpy, "save", lambda arrays, meta: serialize({"x": arrays["x"][::-1].copy()}, meta)
    )
    with pytest.raises(RuntimeError, match="serialised 'x' wrongly"):
        tilegrad.save({"x": np.arange(6.0)}, path)
    assert path.read_bytes() == before


def test_torch_style_program(path):
    tilegrad.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = optim.Adam(model.parameters(), lr=0.01)
    x = tilegrad.randn(5, 4)
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
    tilegrad.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}, path)

    other = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    other_optimizer = optim.Adam(other.parameters(), lr=0.5)
    checkpoint = tilegrad.load(path, map_location="cpu", weights_only=True)
    other.load_state_dict(checkpoint["model"])
    other_optimizer.load_state_dict(checkpoint["optimizer"])
    assert checkpoint["epoch"] == 3
    for m, o in ((model, optimizer), (other, other_optimizer)):  # one more step: the same to the last bit
        o.zero_grad()
        m(x).square().sum().backward()
        o.step()
    assert same(dict(other.state_dict()), dict(model.state_dict()))


def test_other_programs_and_ours_read_the_same_file(path):
    from safetensors.numpy import load_file, save_file

    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    tilegrad.save({"model": {"weight": tilegrad.from_numpy(array)}, "lr": 0.1}, path)
    np.testing.assert_array_equal(load_file(path)["model/weight"], array)
    save_file({"a.weight": array}, path)
    loaded = tilegrad.load(path)
    assert isinstance(loaded["a.weight"], tilegrad.Tensor)
    np.testing.assert_array_equal(loaded["a.weight"].numpy(), array)


@pytest.mark.parametrize(
    ("obj", "message"),
    [
        ({"model": {"a": object()}}, "object at 'model/a', expected tensors"),
        ([{1, 2}], "set at '0'"),
        (nn.Linear(2, 3), r"Linear at the top, .*; save its state_dict\(\)"),
        ({"z": np.array([1j])}, "dtype complex128 at 'z', expected one of bool"),
        ({"o": np.array([None])}, "dtype object at 'o'"),
        ({"s": np.array(["text"])}, "at 's', expected one of"),
        ({(1, 2): 3}, "key of type tuple at the top"),
    ],
)
def test_what_cannot_be_saved(path, obj, message):
    with pytest.raises(TypeError, match=message):
        tilegrad.save(obj, path)
    assert list(path.parent.iterdir()) == []


def test_bad_paths(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at '.*nothing'"):
        tilegrad.load(tmp_path / "nothing")
    with pytest.raises(
        FileNotFoundError, match=r"the folder '.*no' does not exist; expected an existing one for 'm\.s'"
    ):
        tilegrad.save({}, tmp_path / "no" / "m.s")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        tilegrad.save({}, tmp_path)
    with pytest.raises(TypeError, match="expected the path of a file, got BytesIO"):
        tilegrad.save({}, io.BytesIO())


def test_files_that_are_no_checkpoints(path):
    import pickle

    tilegrad.save({"x": np.arange(100.0), "lr": 0.001}, path)
    whole = path.read_bytes()
    end = 8 + int.from_bytes(whole[:8], "little")
    cases = {
        "is empty; expected a safetensors file": b"",
        "looks like a pickle": pickle.dumps({"x": 1}),
        "looks like a pickle of torch.save": b"PK\x03\x04 and so on",
        "cut short, damaged, or of another format": b"label,pixel\n1,2\n3,4\n",
        "cut short, damaged": whole[:50],
        f"is cut short or damaged: {len(whole) - 1} bytes, expected {len(whole)}": whole[:-1],
        "is corrupt: expected JSON with a tree in its header": whole.replace(b"crc32", b"crc33"),
        f"is cut short or damaged: {len(whole) + 3} bytes": whole + b"abc",
        "is corrupt: its contents have the checksum": whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:],
        "the checksum": whole[:end].replace(b"0.001", b"0.002") + whole[end:],
        "or of another format": struct.pack("<Q", 2) + b"[]",
        "the dtype F8_E4M3, expected one of BOOL": safetensors_file({"x": ("F8_E4M3", [2], b"ab")}),
    }
    for message, blob in cases.items():
        path.write_bytes(blob)
        with pytest.raises(ValueError, match=rf"'.*model\.safetensors' .*{message}") as caught:
            tilegrad.load(path)
        assert "\n" not in str(caught.value)


def safetensors_file(tensors):
    header, data = {}, b""
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def test_a_killed_process_leaves_the_old_file_whole(path):
    tilegrad.save({"x": np.arange(1000.0), "epoch": 1}, path)
    # The child stops in the midst of its writing: the bytes are out, the file is not yet in its place.
    child = """
        import os, sys, time
        import numpy as np
        import tilegrad
        def stop(descriptor):
            print("writing", flush=True)
            time.sleep(60)
        os.fsync = stop
        tilegrad.save({"x": np.zeros(1_000_000), "epoch": 2}, sys.argv[1])
    """
    command = [sys.executable, "-c", textwrap.dedent(child), str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "writing\n"
        process.send_signal(signal.SIGKILL)
    loaded = tilegrad.load(path)
    assert loaded["epoch"] == 1
    np.testing.assert_array_equal(loaded["x"], np.arange(1000.0))


def test_bytes_are_on_the_disk_before_the_name_is(path, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append("fsync"), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append("replace"), replace(a, b)))
    tilegrad.save({"x": np.zeros(3)}, path)
    assert events[:2] == ["fsync", "replace"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_a_failed_save_leaves_the_old_file_and_no_other(path, monkeypatch, error):
    tilegrad.save({"epoch": 1}, path)

    def fail(a, b):
        raise error

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(error):
        tilegrad.save({"epoch": 2}, path)
    assert tilegrad.load(path) == {"epoch": 1}
    assert list(path.parent.iterdir()) == [path]


def test_permissions_and_links(path):
    target = path.parent / "target.safetensors"
    target.write_bytes(b"")
    os.symlink(target, path)
    tilegrad.save({"epoch": 1}, path)
    assert path.is_symlink()
    assert tilegrad.load(target) == {"epoch": 1}
    umask = os.umask(0)
    os.umask(umask)
    assert target.stat().st_mode & 0o777 == 0o666 & ~umask


def test_saved_values_are_those_of_the_moment(path):
    t = tilegrad.from_numpy(np.zeros(3, ml_dtypes.bfloat16)).float().requires_grad_()
    tilegrad.save({"t": t, "twice": t * 2}, path)  # neither gradient nor graph is saved
    loaded = tilegrad.load(path)
    assert not loaded["t"].requires_grad
    assert loaded["twice"].grad_fn is None
