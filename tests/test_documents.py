"""Documents and archives: what was written is read; what was damaged, or never was one, is said."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import zipfile
from typing import TypedDict

import bucket
import numpy as np
import pytest
from etils import epath

from simclr_jax import archives, documents
from simclr_jax.documents import Unfit
from simclr_jax.errors import BadFile, Unreachable, UserError


class Scores(TypedDict):
    name: str
    scores: dict[str, float | None]


CONTENT = {"name": "kNN", "scores": {"accuracy": 0.1 + 0.2, "low": 1e-300, "high": float("nan")}}
READ = {"name": "kNN", "scores": {"accuracy": 0.30000000000000004, "low": 1e-300, "high": None}}


def test_what_is_written_is_read(tmp_path):
    documents.write(tmp_path / "a.json", CONTENT)
    assert documents.read(tmp_path / "a.json", Scores) == READ
    assert documents.parse(documents.line(CONTENT), Scores) == READ


def test_what_has_no_checksum_is_held_to_its_schema():
    assert documents.parse(json.dumps(READ), Scores) == READ
    with pytest.raises(Unfit, match=r"Expected `float \| null`, got `str` - at `\$.scores\[...\]`"):
        documents.parse('{"name": "kNN", "scores": {"low": "1"}}', Scores)
    with pytest.raises(Unfit, match="missing required field `scores`"):
        documents.parse('{"name": "kNN"}', Scores)


def test_no_flipped_bit_is_read_as_something_else():
    whole = documents.line(CONTENT).encode()
    for place in range(len(whole)):
        for bit in range(8):
            flipped = bytearray(whole)
            flipped[place] ^= 1 << bit
            with contextlib.suppress(Unfit):  # or a space was, or the name of the seal
                assert documents.parse(bytes(flipped), Scores) == READ


def test_no_document_cut_short_is_read():
    whole = documents.line(CONTENT).encode().rstrip()
    for length in range(len(whole)):
        with pytest.raises(Unfit):
            documents.parse(whole[:length], Scores)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"\xff\xfe", "UTF-8"),
        (b"", "not JSON"),
        (b"[" * 100_000, "nested too deeply|not JSON"),
        (b"[" * 70 + b"]" * 70, "nested too deeply"),
        (b'{"name": "a", "scores": {"low": 1e400}}', "1e400 is out of range"),
        (b'{"name": "a", "scores": {"low": ' + b"9" * 5000 + b"}}", "out of range"),
        (b"[1, 2]", "Expected `object`, got `array`"),
        (b'"text"', "Expected `object`, got `str`"),
        (b"null", "Expected `object`, got `null`"),
        (b'{"\\udcff": 1, "name": "a", "scores": {}}', "a name in it is no text"),
    ],
)
def test_what_is_no_document_is_said(tmp_path, text, said):
    (tmp_path / "a.json").write_bytes(text)
    with pytest.raises(UserError, match=said) as raised:
        documents.read(tmp_path / "a.json", Scores, "write it again")
    assert str(tmp_path / "a.json") in str(raised.value)
    assert str(raised.value).endswith(": write it again")
    assert "\n" not in str(raised.value)


def test_a_directory_in_place_of_a_file_is_said(tmp_path):
    (tmp_path / "a.json").mkdir()
    (tmp_path / "a.npz").mkdir()
    with pytest.raises(UserError, match="Is a directory"):
        documents.read(tmp_path / "a.json", Scores)
    with pytest.raises(UserError, match="Is a directory"):
        archives.read(tmp_path / "a.npz")
    for missing in ("b.json", "a.json/b.json"):
        for read in (archives.read, lambda path: documents.read(path, Scores)):
            with pytest.raises(FileNotFoundError):
                read(tmp_path / missing)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.json")
    os.mkfifo(tmp_path / "a.npz")
    with pytest.raises(UserError, match="it is a pipe or a device"):
        documents.read(tmp_path / "a.json", Scores)
    with pytest.raises(UserError, match="it is a pipe or a device"):
        archives.read(tmp_path / "a.npz")


@pytest.mark.parametrize("place", ["disk", "bucket"])
def test_a_file_that_is_larger_than_a_document_may_be_takes_no_memory(tmp_path, monkeypatch, place):
    with bucket.at(tmp_path):
        path = epath.Path("gs://fake/a.json") if place == "bucket" else epath.Path(tmp_path / "a")
        path.write_text(json.dumps(READ) + " " * 1000)
        size = len(json.dumps(READ)) + 1000
        assert documents.read(path, Scores, largest=size) == READ

        def read_bytes(_):
            raise AssertionError("it is read")

        monkeypatch.setattr(type(path), "read_bytes", read_bytes)
        said = f"it has {size} bytes, of at most {size - 1}.: write it again"
        with pytest.raises(UserError, match=said):
            documents.read(path, Scores, "write it again", largest=size - 1)


def test_a_sparse_file_of_any_size_is_refused(tmp_path):
    with (tmp_path / "a.json").open("wb") as file:
        file.truncate(2**40)
    for read in (documents.content, lambda path: documents.read(path, Scores)):
        with pytest.raises(UserError, match="it has 1099511627776 bytes, of at most"):
            read(tmp_path / "a.json")


# Archives -----------------------------------------------------------------------------------------


def archive(**arrays) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def header(shape: tuple[int, ...], dtype: str = "<f4") -> bytes:
    buffer = io.BytesIO()
    fields = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, fields)
    return buffer.getvalue()


def test_arrays_that_are_written_are_read(tmp_path):
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    arrays = {"x": x, "f": np.asfortranarray(x), "none": x[:0], "text": np.array(["a", "bc"])}
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    found = archives.read(tmp_path / "a.npz")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
    assert archives.read(tmp_path / "a.npz", ("x", "y")).keys() == {"x"}


def test_an_archive_that_claims_more_than_it_has_takes_no_memory(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        file.writestr("x.npy", header((5_000_000_000,)) + b"\0" * 100)
    with pytest.raises(UserError, match="x claims 20000000000 bytes and has 100"):
        archives.read(tmp_path / "a.npz")


def test_an_archive_that_would_fill_the_memory_is_said(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros(3_000_000, np.uint8), y=np.zeros(9))
    monkeypatch.setattr(archives, "free_memory", lambda: 2_000_000)
    with pytest.raises(UserError, match=r"it claims 0.003 GB with x, and 0.0016 GB are free"):
        archives.read(tmp_path / "a.npz")
    assert archives.read(tmp_path / "a.npz", ["y"])["y"].shape == (9,)


def test_free_memory_is_that_of_the_smallest_group_this_process_is_in(tmp_path, monkeypatch):
    whole = archives.free_memory()
    monkeypatch.setattr(archives, "PROC", tmp_path / "proc")
    monkeypatch.setattr(archives, "GROUPS", tmp_path / "groups")
    job = tmp_path / "groups" / "jobs" / "7"
    for path, text in {
        tmp_path / "proc" / "meminfo": f"MemTotal: {whole // 512} kB\nMemAvailable: 1000 kB\n",
        tmp_path / "proc" / "self" / "cgroup": "1:name=systemd:/x\n0::/jobs/7\n",
        job / "memory.max": "max\n",
        job / "memory.current": "100000\n",
        job.parent / "memory.max": "900000\n",
        job.parent / "memory.current": "500000\n",
        job.parent / "memory.stat": "anon 300000\ninactive_file 150000\n",
    }.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert archives.free_memory() == 900_000 - 500_000 + 150_000
    (job.parent / "memory.max").write_text("max\n")
    assert archives.free_memory() == 1_024_000
    (tmp_path / "proc" / "self" / "cgroup").unlink()
    assert archives.free_memory() == 1_024_000


@pytest.mark.parametrize(
    "error, kind, said",
    [
        (OSError(errno.EIO, "Input/output error"), Unreachable, "check the disk or mount"),
        (OSError(errno.EINVAL, "Invalid argument"), BadFile, "restore or remove it"),
        (MemoryError(), UserError, "free memory"),
    ],
    ids=repr,
)
def test_a_disk_that_fails_while_an_archive_is_read_is_no_fault_of_the_archive(
    tmp_path, monkeypatch, error, kind, said
):
    (tmp_path / "a.npz").write_bytes(archive(x=np.arange(9)))

    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(np.lib.format, "read_array", refuse)
    with pytest.raises(UserError, match=said) as raised:
        archives.read(tmp_path / "a.npz")
    assert type(raised.value) is kind and "\n" not in str(raised.value)


def test_python_objects_are_not_run(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(UserError, match="x has Python objects"):
        archives.read(tmp_path / "a.npz")


def test_no_damaged_archive_is_read_as_something_else(tmp_path):
    whole = archive(x=np.arange(40.0), labels=np.arange(5))
    expected = {"x": np.arange(40.0), "labels": np.arange(5)}
    random = np.random.default_rng(0)
    damages = [whole[:length] for length in range(0, len(whole), 37)]
    for place in random.integers(len(whole), size=400):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << random.integers(8)
        damages.append(bytes(flipped))
    refused = 0
    for damage in damages:
        (tmp_path / "a.npz").write_bytes(damage)
        try:
            found = archives.read(tmp_path / "a.npz")
        except UserError as error:
            refused += 1
            assert "\n" not in str(error)
            continue
        for name in found.keys() & expected.keys():  # others had a bit of their name flipped
            np.testing.assert_array_equal(found[name], expected[name])
    assert refused > len(damages) / 2
