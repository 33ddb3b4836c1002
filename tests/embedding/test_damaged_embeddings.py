"""Files of embeddings that were damaged, or that somebody else has made up."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from embedding import embedded

from simclr_jax.embedding import embeddings
from simclr_jax.embedding.embeddings import Embeddings
from simclr_jax.errors import UserError

ROWS = 20
COLUMNS = ("features", "names", "part", "examples", "labels")
SUFFIXES = (".npz", ".parquet")


def rows(**about):
    random = np.random.default_rng(0)
    return Embeddings(
        features=random.normal(size=(ROWS, 5)).astype(np.float32),
        names=np.array([f"a/{'ü' * (i % 3)}{i}.png" for i in range(ROWS)]),
        part=(np.arange(ROWS) % 2).astype(np.int32),
        examples=np.arange(ROWS),
        labels=(np.arange(ROWS, dtype=np.int32) % 3) - 1,
        about=embedded.about(
            parts=["train", "test"], fingerprints=["x", "y"], class_names=["p", "q"], **about
        ),
    )


@pytest.fixture(params=SUFFIXES)
def file(request, tmp_path):
    if request.param == ".parquet":
        pytest.importorskip("pyarrow")
    path = tmp_path / f"x{request.param}"
    assert embeddings.write(path, rows())
    return path


def read(path):
    """Read a file; None if it is refused, which must be in one line."""
    try:
        return embeddings.read(str(path))
    except UserError as error:
        assert "\n" not in str(error) and str(path) in str(error)
        return None


def assert_same(found):
    expected = rows()
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    # A flipped bit may have made another name of the checksum's.
    assert {name: found.about[name] for name in expected.about} == expected.about


def flips(path, step):
    """Flip a bit of every `step`-th byte, each in a file of its own; count those refused."""
    whole, refused = path.read_bytes(), 0
    random = np.random.default_rng(0)
    places = range(0, len(whole), step)
    for place in places:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << random.integers(8)
        path.write_bytes(flipped)
        if (found := read(path)) is None:
            refused += 1
        else:
            assert_same(found)
    return refused / len(places)


def test_no_flipped_bit_is_read_as_something_else(file):
    assert_same(read(file))
    assert flips(file, 11) > 0.5


@pytest.mark.slow
def test_no_flipped_bit_of_any_byte_is_read_as_something_else(file):
    assert flips(file, 1) > 0.5


def test_no_file_cut_short_is_read(file):
    whole = file.read_bytes()
    for length in range(0, len(whole), 97):
        file.write_bytes(whole[:length])
        assert read(file) is None
    file.unlink()
    file.mkdir()
    assert read(file) is None


def altered(path, found, **about):
    """Write rows and what is said of them without a checksum, as an old version or a stranger."""
    said = json.dumps(found.about | about)
    kind = embeddings._write_parquet if path.suffix == ".parquet" else embeddings._write_npz
    kind(path, dataclasses.replace(found, about=said))
    return path


def test_an_older_file_is_read_with_a_note(file):
    found = read(altered(file, rows()))
    assert_same(found)
    (note,) = found.notes
    assert "without checksums" in note and not found.own
    embeddings.write(file, rows())
    assert read(file).notes == [] and read(file).own


def test_a_checksum_of_other_rows_is_noticed(file):
    known = read(file).about
    for name, value in (
        ("features", rows().features * np.float32(2)),
        ("names", rows().names[::-1]),
        ("labels", None),
    ):
        other = dataclasses.replace(rows(), **{name: value}, about=known)
        with pytest.raises(UserError, match="rows were altered since"):
            embeddings.read(str(altered(file, other)))


MADE_UP = [
    ({"features": np.zeros((ROWS, 3))}, r"features are float64\[20, 3\], not float32"),
    ({"features": np.zeros(ROWS, np.float32)}, r"features are float32\[20\], not"),
    ({"features": np.zeros((ROWS, 0), np.float32)}, r"features are float32\[20, 0\], not"),
    ({"features": np.full((ROWS, 3), "x")}, "features are <U1"),
    (
        {"features": np.where(np.eye(ROWS, 3), np.nan, 1).astype(np.float32)},
        "features of 3 images are no finite numbers, such as of a/0.png",
    ),
    ({"names": np.arange(ROWS)}, r"names are int64\[20\], for 20 images"),
    ({"names": np.array(["a", "b"])}, r"names are <U1\[2\], for 20 images"),
    ({"part": np.full(ROWS, 2, np.int32)}, "part are 2 to 2, of 2"),
    ({"part": np.full(ROWS, -1, np.int32)}, "part are -1 to -1, of 2"),
    ({"part": np.zeros(ROWS)}, "part are float64"),
    ({"examples": np.full(ROWS, -5)}, "examples are -5 to -5"),
    ({"labels": np.full(ROWS, 2)}, "labels are 2 to 2, of 2"),
    ({"labels": np.zeros((ROWS, 3), np.int8)}, "labels are of 3 classes, and there are 2"),
    ({"labels": np.full((ROWS, 2), 7, np.int8)}, "labels are 7 to 7, of 2"),
    ({"labels": np.array(["x"] * ROWS)}, "labels are <U1"),
    ({"labels": np.zeros((ROWS, 2, 2), np.int8)}, r"labels are int8\[20, 2, 2\]"),
]


@pytest.mark.parametrize("change, said", MADE_UP)
def test_rows_that_search_could_not_use_are_refused(tmp_path, change, said):
    path = tmp_path / "x.npz"
    whole = rows()
    arrays = {name: getattr(whole, name) for name in COLUMNS} | change
    np.savez(path, about=np.array(json.dumps(whole.about)), **arrays)
    with pytest.raises(UserError, match=f"holds no embeddings .*{said}"):
        embeddings.read(str(path))


ABOUT = [
    ({"format": 2}, "it has format 2, this is format 1"),
    ({"format": "1"}, "Expected `int`, got `str`"),
    ({"class_names": "pq"}, r"Expected `array`, got `str` - at `\$.class_names`"),
    ({"parts": []}, "part are 0 to 1, of 0"),
    ({"fingerprints": ["x"]}, "2 parts and 1 fingerprints"),
    ({"data": None}, r"Expected `object`, got `null` - at `\$.data`"),
    ({"directory": {}}, "Expected `str`, got `object`"),
    ({"tap": 3}, "Expected `str`, got `int`"),
]


@pytest.mark.parametrize("change, said", ABOUT)
def test_what_is_said_of_rows_is_held_to_its_shape(file, change, said):
    with pytest.raises(UserError, match=said):
        embeddings.read(str(altered(file, rows(), **change)))


@pytest.mark.parametrize("about", [3, [1], [[]], b"{}", "[]", "{", '"x"', "null", "x"])
def test_an_odd_about_is_refused(tmp_path, about):
    arrays = {name: getattr(rows(), name) for name in COLUMNS}
    np.savez(tmp_path / "x.npz", about=np.array(about), **arrays)
    assert read(tmp_path / "x.npz") is None
    for name in ("features", "names", "part", "examples"):
        rest = {key: value for key, value in arrays.items() if key != name}
        np.savez(tmp_path / "x.npz", about=np.array(json.dumps(rows().about)), **rest)
        with pytest.raises(UserError, match=f"it has no {name}"):
            embeddings.read(str(tmp_path / "x.npz"))


def test_an_odd_table_is_refused(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    path, about = tmp_path / "x.parquet", {"simclr_jax": json.dumps(rows().about)}
    plain = {
        "name": pa.array(["a", "b"]),
        "part": pa.array([0, 0], pa.int32()),
        "example": pa.array([0, 1]),
        "features": pa.FixedSizeListArray.from_arrays(np.ones(6, np.float32), 3),
    }
    odd = [
        {"features": pa.array([[1.0], [2.0, 3.0]])},
        {"features": pa.array([1.0, 2.0])},
        {"features": pa.FixedSizeListArray.from_arrays(pa.array([None, *range(5)], "f4"), 3)},
        {"name": pa.array(["a", None])},
        {"name": pa.array([1, 2])},
        {"name": pa.array([b"\xff", b"b"])},
        {"part": pa.array([0, None], pa.int32())},
        {"example": pa.array([{"x": 1}, {"x": 2}])},
        {"label": pa.array(["a", "b"])},
    ]

    def table(columns, said=about):
        pyarrow.parquet.write_table(pa.table(columns).replace_schema_metadata(said), path)

    table(plain)
    assert read(path).names.tolist() == ["a", "b"]
    for change in odd:
        table(plain | change)
        assert read(path) is None
    for name in plain:
        table({key: column for key, column in plain.items() if key != name})
        with pytest.raises(UserError, match=f"it has no '?{name}|holds no embeddings"):
            embeddings.read(str(path))
    table(plain, {})
    assert read(path) is None


def test_a_table_that_would_fill_the_memory_is_said(tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")
    path = tmp_path / "x.parquet"
    embeddings.write(path, rows())
    monkeypatch.setattr(embeddings.archives, "free_memory", lambda: 1000)
    with pytest.raises(UserError, match=r"it claims 1.44e-06 GB, and 8e-07 GB are free"):
        embeddings.read(str(path))
    monkeypatch.setattr(embeddings.archives, "free_memory", lambda: 2000)
    names = rows().names.astype("<U99")
    names[0] = "x" * 99
    embeddings.write(path, dataclasses.replace(rows(), names=names))
    with pytest.raises(UserError, match=r"its names claim .* for one has 99 letters"):
        embeddings.read(str(path))


def test_a_name_that_parquet_cannot_hold_is_said(tmp_path):
    pytest.importorskip("pyarrow")
    odd = dataclasses.replace(rows(), names=np.array([f"\udcff{i}" for i in range(ROWS)]))
    with pytest.raises(UserError, match=r'cannot hold the name "\\udcff0".*ends in .npz'):
        embeddings.write(tmp_path / "x.parquet", odd)
    embeddings.write(tmp_path / "x.npz", odd)
    assert embeddings.read(str(tmp_path / "x.npz")).names[1] == "\udcff1"
