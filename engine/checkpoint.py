"""Checkpoints: nested dicts of tensors and plain values in one safetensors file, never pickle.

The tensors lie in the file under readable names (``model/0.weight``), so any safetensors reader finds them;
the nesting, and every value that is not an array, stand as JSON in the file's metadata. A file of another
safetensors writer loads as a flat dict of its tensors.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import zlib
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from .creation import from_numpy
from .storage import DTYPES, Array, is_cupy, to_device
from .storage import device as Device
from .tensor import Tensor

SEPARATOR = "/"  # between the keys of nested dicts in a tensor's name
ENTRY = "tilegrad"  # of the metadata: {"tree": the nesting and the plain values, "crc32": of that and all arrays}

_DTYPES = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8), "U16": np.dtype(np.uint16),
    "U32": np.dtype(np.uint32), "U64": np.dtype(np.uint64),
    "I8": np.dtype(np.int8), "I16": np.dtype(np.int16),
    "I32": np.dtype(np.int32), "I64": np.dtype(np.int64),
    "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype(np.float32), "F64": np.dtype(np.float64),
}  # fmt: skip
_TENSOR_DTYPES = frozenset(d.dtype for d in DTYPES)


# --- the file -----------------------------------------------------------------------------------------------


def save(obj: Any, path: str | os.PathLike[str]) -> None:
    """Write tensors and plain values, nested in dicts, lists and tuples, to one safetensors file.

    Tensors may be NumPy or CuPy arrays too. Plain values are None, bool, int, float and str; so are the keys
    of dicts. The file appears under ``path`` whole or not at all: a process that is killed meanwhile leaves
    what was there before.

    Raises:
        TypeError: a value or a key of another kind, with its place in ``obj``; a dtype that safetensors
            lacks.
        FileNotFoundError: the folder of ``path`` does not exist. Other errors of the file system come
            through.
    """
    from safetensors.numpy import save as serialize

    name = _path(path, "save")
    arrays: dict[str, np.ndarray] = {}
    tree = _flatten(obj, (), arrays)
    entry = json.dumps({"crc32": _checksum(arrays, tree), "tree": tree})
    blob = serialize(arrays, {ENTRY: entry})  # one entry, as their order is random: equal objects give equal files
    _check_blob(blob, arrays, name)
    _write_whole(blob, name)


def load(
    path: str | os.PathLike[str],
    device: Device | str | None = "cpu",
    *,
    map_location: Device | str | None = None,
    weights_only: bool = True,
) -> Any:
    """Read what ``save`` wrote: the same nesting, tensors on ``device``, NumPy arrays as NumPy arrays.

    ``map_location`` is torch's name for ``device``. ``weights_only`` is accepted for torch's sake: no code is
    ever loaded.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not safetensors, is cut short, or its contents do not match their checksum.
    """
    from safetensors import SafetensorError, deserialize

    name = _path(path, "load")
    where = Device(map_location if map_location is not None else device if device is not None else "cpu")
    if not os.path.exists(name):
        raise FileNotFoundError(
            f"load: no checkpoint at '{name}'; expected a safetensors file written by tilegrad.save"
        )
    with open(name, "rb") as file:
        blob = file.read()
    try:
        metadata = _header(blob).get("__metadata__", {})
        arrays = {key: _array(key, entry) for key, entry in deserialize(blob)}
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"load: '{name}' {_diagnosis(blob)} ({error})") from None
    if ENTRY not in metadata:  # another program's file
        return {key: _tensor(key, array, where, name) for key, array in arrays.items()}
    try:
        entry = json.loads(metadata[ENTRY])
        tree, wanted = entry["tree"], entry["crc32"]
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"load: '{name}' is corrupt: expected JSON with a tree in its header ({error!r})") from None
    found = _checksum(arrays, tree)
    if found != wanted:
        raise ValueError(f"load: '{name}' is corrupt: its contents have the checksum {found}, expected {wanted}")
    return _unflatten(tree, arrays, where, name)


def _path(path: Any, caller: str) -> str:
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"{caller}: expected the path of a file, got {type(path).__name__}")
    return os.path.realpath(os.fspath(path))  # a link's target: the rename must not replace the link


def _write_whole(blob: bytes, name: str) -> None:
    folder, base = os.path.split(name)
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"save: the folder '{folder}' does not exist; expected an existing one for '{base}'")
    if os.path.isdir(name):
        raise IsADirectoryError(f"save: '{name}' is a folder; expected the path of a file")
    # In the same folder, because a rename is atomic only within one file system.
    temporary = os.path.join(folder, f".{base}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(blob)
            file.flush()
            os.fsync(file.fileno())  # the bytes must be on the disk before the name points to them
        os.replace(temporary, name)
    except BaseException:  # also KeyboardInterrupt
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    if hasattr(os, "O_DIRECTORY"):  # and the new name too; Windows cannot open a folder
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _header(blob: bytes) -> dict[str, Any]:
    """The JSON header: its length in the first eight bytes, little-endian, then the text."""
    length = int.from_bytes(blob[:8], "little")
    if len(blob) < 8 or length > len(blob) - 8:
        raise ValueError(f"{len(blob)} bytes, expected a header of {length} bytes after the first 8")
    header = json.loads(blob[8 : 8 + length])
    if not isinstance(header, dict):
        raise ValueError(f"the header is a JSON {type(header).__name__}, expected an object")
    return header


def _diagnosis(blob: bytes) -> str:
    expected = "expected a safetensors file written by tilegrad.save"
    if not blob:
        return f"is empty; {expected}"
    if blob[:2] == b"PK" or blob[:1] == b"\x80":
        return f"looks like a pickle of torch.save or pickle.dump, which is never loaded; {expected}"
    with contextlib.suppress(ValueError):
        header = _header(blob)
        ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]
        wanted = 8 + int.from_bytes(blob[:8], "little") + max(ends, default=0)
        if len(blob) != wanted:
            return f"is cut short or damaged: {len(blob)} bytes, expected {wanted}"
    return f"is cut short, damaged, or of another format; {expected}"


def _check_blob(blob: bytes, arrays: dict[str, np.ndarray], name: str) -> None:
    """Compare the serialised form with the arrays: safetensors 0.8 silently writes strided ones wrong."""
    header = _header(blob)
    start = 8 + int.from_bytes(blob[:8], "little")
    for key, array in arrays.items():
        entry = header[key]
        first, last = entry["data_offsets"]
        written = np.frombuffer(blob, np.uint8, last - first, start + first)
        same = _DTYPES[entry["dtype"]] == array.dtype and tuple(entry["shape"]) == array.shape
        if not same or not np.array_equal(written, array.reshape(-1).view(np.uint8)):
            raise RuntimeError(f"save: safetensors serialised '{key}' wrongly; '{name}' was left as it was")


def _checksum(arrays: Mapping[str, np.ndarray], tree: Any) -> int:
    """A CRC-32 of the nesting and of every array: name, dtype, shape and bytes."""
    value = zlib.crc32(json.dumps(tree).encode())
    for key in sorted(arrays):
        array = arrays[key]
        value = zlib.crc32(f"{key} {array.dtype.name} {array.shape}".encode(), value)
        value = zlib.crc32(array.reshape(-1).view(np.uint8).data, value)
    return value


def _array(key: str, entry: Mapping[str, Any]) -> np.ndarray:
    if entry["dtype"] not in _DTYPES:
        raise ValueError(f"'{key}' has the dtype {entry['dtype']}, expected one of {', '.join(_DTYPES)}")
    # A bytearray of our own: the array is writable.
    return np.frombuffer(bytearray(entry["data"]), _DTYPES[entry["dtype"]]).reshape(entry["shape"])


# --- the nesting --------------------------------------------------------------------------------------------
# JSON has no tuples, arrays or keys other than strings, so these become an object of one key with a "$":
# {"$tensor": name}, {"$array": name}, {"$tuple": [...]}, {"$dict": [[key, value], ...]}.


def _flatten(obj: Any, place: tuple[str, ...], arrays: dict[str, np.ndarray]) -> Any:
    """``obj`` as JSON values; its arrays go into ``arrays``, each under the keys that lead to it."""
    if obj is None or (isinstance(obj, (bool, int, float, str)) and not isinstance(obj, np.generic)):
        return obj
    if isinstance(obj, np.generic) and type(obj.item()) in (bool, int, float, str):
        return obj.item()
    if isinstance(obj, Tensor):
        return {"$tensor": _keep(obj.detach()._array, place, arrays)}
    if isinstance(obj, np.ndarray) or is_cupy(obj):
        return {"$array": _keep(obj, place, arrays)}
    if isinstance(obj, Mapping):
        plain = all(isinstance(k, str) and not k.startswith("$") for k in obj)
        for k in obj:
            if not (k is None or isinstance(k, (str, bool, int, float))):
                raise TypeError(
                    f"save: a key of type {type(k).__name__} at {_at(place)}, expected str, int, float, bool or None"
                )
        pairs = [(k, _flatten(v, (*place, str(k)), arrays)) for k, v in obj.items()]
        return dict(pairs) if plain else {"$dict": [list(p) for p in pairs]}
    if isinstance(obj, (list, tuple)):
        values = [_flatten(v, (*place, str(i)), arrays) for i, v in enumerate(obj)]
        return values if isinstance(obj, list) else {"$tuple": values}
    hint = "; save its state_dict()" if hasattr(obj, "state_dict") else ""
    raise TypeError(
        f"save: a {type(obj).__name__} at {_at(place)}, expected tensors, arrays, None, bool, int, float "
        f"and str in dicts, lists and tuples{hint}"
    )


def _at(place: tuple[str, ...]) -> str:
    return f"'{SEPARATOR.join(place)}'" if place else "the top"


def _keep(array: Array, place: tuple[str, ...], arrays: dict[str, np.ndarray]) -> str:
    host = to_device(array, "cpu")
    if host.dtype.newbyteorder("=") not in _DTYPES.values():
        known = ", ".join(d.name for d in _DTYPES.values())
        raise TypeError(f"save: an array of dtype {host.dtype} at {_at(place)}, expected one of {known}")
    name = SEPARATOR.join(place) or "value"
    while name in arrays:  # {1: a, "1": b}, or a key that holds the separator
        name += "'"
    # C order and native bytes; ascontiguousarray would make a 0-d array 1-d.
    arrays[name] = np.asarray(host, host.dtype.newbyteorder("="), order="C")
    return name


def _unflatten(node: Any, arrays: Mapping[str, np.ndarray], where: Device, path: str) -> Any:
    if isinstance(node, list):
        return [_unflatten(v, arrays, where, path) for v in node]
    if not isinstance(node, dict):
        return node
    if len(node) == 1:
        ((tag, value),) = node.items()
        if tag == "$tensor":
            return _tensor(value, arrays[value], where, path)
        if tag == "$array":
            return arrays[value]
        if tag == "$tuple":
            return tuple(_unflatten(v, arrays, where, path) for v in value)
        if tag == "$dict":
            return {k: _unflatten(v, arrays, where, path) for k, v in value}
    return {k: _unflatten(v, arrays, where, path) for k, v in node.items()}


def _tensor(key: str, array: np.ndarray, where: Device, path: str) -> Tensor:
    if array.dtype not in _TENSOR_DTYPES:
        raise ValueError(f"load: '{path}' holds '{key}' of dtype {array.dtype}, which no Tensor has")
    return from_numpy(array).to(where)
