"""What a checkpoint must contain, leaf by leaf, whatever mesh wrote it and whatever mesh reads it.

A leaf's checksum is the sum modulo 2^64 of its words, each times an odd number fixed by the word's
place in the whole array. A word is an element's bits, or half of them where an element has 8 bytes.
An odd number is invertible modulo 2^64, so one changed word always changes the sum; and a sum does
not ask in which order, or by which device or process, its terms were found.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import jax
import msgspec
import numpy as np
from etils import epath

from simclr_jax import buckets, documents, files
from simclr_jax.errors import BadFile

NAME = "manifest.json"
_GONE = (FileNotFoundError, NotADirectoryError)
_WIDTHS = (1, 2, 4, 8)  # bytes of an element
_SMALL = 1 << 20  # bytes; the metadata of Orbax stay below
# The multiplier of word i is _ODD[i % _PAGE] * (2 * (i // _PAGE) + 1): a table small enough for a
# core's cache, of scattered odd numbers. It is part of the format, as is the word size.
_PAGE = 1 << 15
_ODD = np.arange(_PAGE, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
_ODD = ((_ODD ^ (_ODD >> np.uint64(32))) * np.uint64(0xBF58476D1CE4E5B9)) | np.uint64(1)


class Damaged(Exception):
    """A checkpoint is not what was saved; the message says in what way."""


class _LeafRecord(TypedDict):
    shape: list[int]
    dtype: str
    checksum: str | None


class _About(TypedDict, total=False):
    recipe: dict[str, Any]
    log: dict[str, Any]


class _Record(TypedDict):
    step: int
    leaves: dict[str, _LeafRecord]
    files: dict[str, tuple[int, str]]
    about: NotRequired[_About]


@dataclass(frozen=True)
class Leaf:
    """What is recorded of one array; `checksum` is None where only shape and dtype are asked."""

    shape: tuple[int, ...]
    dtype: str
    checksum: str | None = None

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class HostLeaf:
    """One array on the host: its blocks, each with the index of its first element per axis.

    Of an array in several copies only the first is here, so that the blocks of all processes
    together hold each element once.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    blocks: tuple[tuple[tuple[int, ...], np.ndarray], ...]


def named_leaves(tree: Any) -> dict[str, Any]:
    """Return the leaves of a pytree by path, such as `params/encoder/stem/kernel`."""
    pairs = jax.tree_util.tree_leaves_with_path(tree)
    leaves = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in pairs}
    if len(leaves) < len(pairs):
        raise ValueError("two leaves of the state have the same path: is there a '/' in a key?")
    return leaves


def to_host(leaves: Mapping[str, Any]) -> dict[str, HostLeaf]:
    """Copy this process's part of each array to the host; all transfers run at the same time."""
    shards = {
        name: [(s.index, s.data) for s in leaf.addressable_shards if s.replica_id == 0]
        for name, leaf in leaves.items()
        if isinstance(leaf, jax.Array)
    }
    for blocks in shards.values():
        for _, data in blocks:
            data.copy_to_host_async()
    host = {}
    for name, leaf in leaves.items():
        if name not in shards:
            values = np.array(leaf)  # a copy: the caller may go on writing into its own array
            host[name] = HostLeaf(values.shape, values.dtype, (((0,) * values.ndim, values),))
            continue
        host[name] = HostLeaf(
            leaf.shape,
            np.dtype(leaf.dtype),
            tuple((tuple(s.start or 0 for s in i), np.asarray(d)) for i, d in shards[name]),
        )
    return host


def checksum(values: np.ndarray, starts: tuple[int, ...], shape: tuple[int, ...]) -> int:
    """Return what one block adds to the checksum of an array, in [0, 2^64).

    Args:
      values: the block; any dtype of 1, 2, 4 or 8 bytes per element.
      starts: index of its first element along each axis of the array.
      shape: of the whole array.
    """
    if not values.size:
        return 0
    width = values.dtype.itemsize
    words = np.ascontiguousarray(values).reshape(-1).view(f"<u{min(width, 4)}")
    if width == 8:
        values_shape, starts, shape = (*values.shape, 2), (*starts, 0), (*shape, 2)
    else:
        values_shape = values.shape
    # From `split` on the block spans the array, so its words lie there in unbroken runs.
    split = len(shape)
    while split and values_shape[split - 1] == shape[split - 1]:
        split -= 1
    split = max(split - 1, 0)
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    origin = sum(start * stride for start, stride in zip(starts, strides, strict=True))
    total = 0
    runs = words.reshape(math.prod(values_shape[:split]), -1)
    for run, index in zip(runs, np.ndindex(values_shape[:split]), strict=True):
        offset = sum(i * stride for i, stride in zip(index, strides, strict=False))
        total += _weigh(run, origin + offset)
    return total % 2**64


def _weigh(run: np.ndarray, first: int) -> int:
    """Sum words times multipliers; `first` is the place of the first word in the whole array."""
    total, done = 0, 0
    while done < run.size:
        page, place = divmod(first + done, _PAGE)
        part = run[done : done + _PAGE - place].astype(np.uint64)
        on_page = int(np.dot(part, _ODD[place : place + part.size]))
        total += on_page * (2 * page + 1)
        done += part.size
    return total


def describe(host: Mapping[str, HostLeaf]) -> dict[str, Leaf]:
    """Return shape, dtype and checksum of each array.

    The sum runs over the blocks of this process. Checksums of several processes add up modulo
    2^64 in the same way; such an exchange belongs here and nowhere else.
    """
    sums = {
        name: sum(checksum(values, starts, leaf.shape) for starts, values in leaf.blocks) % 2**64
        for name, leaf in host.items()
    }
    return {
        name: Leaf(tuple(leaf.shape), leaf.dtype.name, f"{sums[name]:016x}")
        for name, leaf in host.items()
    }


def differences(wanted: Mapping[str, Leaf], saved: Mapping[str, Leaf]) -> list[str]:
    """Say where two trees differ in paths, shapes or dtypes; checksums are not compared."""
    found = []
    for name in sorted(wanted.keys() | saved.keys()):
        here, there = wanted.get(name), saved.get(name)
        if here is None or there is None:
            found.append(f"{name} is only in the {'checkpoint' if here is None else 'model'}")
        elif (here.shape, here.dtype) != (there.shape, there.dtype):
            found.append(f"{name} is {there} in the checkpoint and {here} in the model")
    return found


def check_values(found: Mapping[str, Leaf], saved: Mapping[str, Leaf]) -> None:
    """Raise `Damaged` unless both hold the same arrays, bit for bit."""
    for difference in differences(found, saved):
        raise Damaged(difference)
    for name, leaf in saved.items():
        if found[name].checksum != leaf.checksum:
            raise Damaged(f"the values of {name} are not those that were saved")


def list_files(directory: epath.Path) -> dict[str, list[Any]]:
    """Return size in bytes and SHA-256 of every file below `directory`, the manifest excepted.

    Large files have no digest: they hold values, and those have the checksums of the leaves.

    Raises:
      BadFile: something there is a pipe, a device or a link to another directory.
      UserError: a file cannot be read for a reason that is not its own.
    """
    found: dict[str, list[Any]] = {}
    for path in buckets.below(directory):
        # What is gone by now is missing; a link that leads nowhere never was there.
        name = os.path.relpath(path, directory)
        with contextlib.suppress(*_GONE), buckets.reaching(path, _GONE):
            if buckets.is_local(path) and not stat.S_ISREG(Path(path).stat().st_mode):
                raise BadFile(f"{name} is no file")
            size = path.stat().length
            digest = hashlib.sha256(path.read_bytes()).hexdigest() if size <= _SMALL else ""
            found[name] = [size, digest]
    found.pop(NAME, None)
    return found


def write(
    directory: epath.Path,
    step: int,
    leaves: Mapping[str, Leaf],
    about: Mapping[str, Any] | None = None,
) -> None:
    """Seal a finished checkpoint: record its arrays and files, with a digest of the record.

    `about`, of JSON, is what else it tells of its run; see `about`.
    """
    record = {
        "step": step,
        "leaves": {name: asdict(leaf) for name, leaf in sorted(leaves.items())},
        "files": dict(sorted(list_files(directory).items())),
        **({"about": documents.finite(about)} if about else {}),
    }
    files.sync(directory)  # Orbax leaves its small files to the system's cache
    text = json.dumps({"digest": _digest(record), **record}, indent=2)
    files.write_atomically(directory / NAME, text + "\n")


def read(directory: epath.Path, step: int) -> dict[str, Leaf]:
    """Return the arrays that a checkpoint must hold.

    Raises:
      Damaged: the manifest is missing or altered, belongs to another step, or a file it lists is
        missing, has another size or, if it is small, another content.
      UserError: something there cannot be read for a reason that is not its own.
    """
    record = _record(directory, step)
    try:
        found = list_files(directory)
    except BadFile as error:
        raise Damaged(str(error)) from error
    for name, (size, digest) in record["files"].items():
        if name not in found:
            raise Damaged(f"{name} is missing")
        if found[name][0] != size:
            raise Damaged(f"{name} has {found[name][0]} of {size} bytes")
        if found[name][1] != digest:
            raise Damaged(f"{name} was altered")
    return {name: _leaf(name, leaf) for name, leaf in record["leaves"].items()}


def _leaf(name: str, record: _LeafRecord) -> Leaf:
    """Return what is recorded of an array; raise `Damaged` if no array can be like that."""
    leaf = Leaf(tuple(record["shape"]), record["dtype"], record["checksum"])
    try:
        dtype = np.dtype(leaf.dtype)
        plain = dtype.name == leaf.dtype and dtype.itemsize in _WIDTHS and not dtype.hasobject
    except (TypeError, ValueError, SyntaxError):  # NumPy reads more than names
        plain = False
    if not plain or min(leaf.shape, default=0) < 0 or math.prod(leaf.shape) >= 2**60:
        raise Damaged(f"{name[:80]} cannot be an array {str(leaf)[:80]}")
    return leaf


def about(directory: epath.Path, step: int) -> dict[str, Any]:
    """Return what a checkpoint tells of its run, without a look at its arrays and files.

    By name: `recipe`, the record that was in `config.json`, and `log`, see `train.metrics`. Nothing
    in checkpoints of earlier versions.

    Raises:
      Damaged: the manifest is missing or altered, or belongs to another step.
      UserError: it cannot be read for a reason that is not its own.
    """
    return dict(_record(directory, step).get("about", {}))


def identity(directory: epath.Path, step: int) -> str:
    """Return a digest of the arrays that a checkpoint must hold, by what its manifest says of them.

    Raises:
      Damaged: the manifest is missing or altered, or belongs to another step.
      UserError: it cannot be read for a reason that is not its own.
    """
    return _digest(_record(directory, step)["leaves"])[:16]


def _record(directory: epath.Path, step: int) -> _Record:
    try:
        record = documents.parse(documents.content(directory / NAME), dict[str, Any])
        digest = record.pop("digest", None)
        if digest != _digest(record):
            raise Damaged(f"{NAME} was altered")
        checked = msgspec.convert(record, _Record)
    except FileNotFoundError as error:
        raise Damaged(f"it has no {NAME}: its save did not finish") from error
    except (documents.Unfit, BadFile) as error:
        raise Damaged(f"{NAME} cannot be used: {error}") from error
    except msgspec.ValidationError as error:
        raise Damaged(f"{NAME} is of another program") from error
    if checked["step"] != step:
        raise Damaged(f"it is a copy of step {checked['step']}")
    return checked


def _digest(record: Mapping[str, Any]) -> str:
    text = json.dumps(record, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
