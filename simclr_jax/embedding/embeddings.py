"""Files of embeddings: a NumPy archive or a Parquet table, one row per image.

features    float32 [m, d]
name(s)     strings; paths below the images' directory where they are files
part        which of `about["parts"]` an image is from, and example, its position there
label(s)    integers, or a list of 1, 0 and -1 (ignored) for each class; absent without labels
about       JSON: checkpoint, step, tap, data, names of the classes (Parquet: metadata)

`about` has a checksum of itself and one of all columns, so that nothing altered is read; files of
versions without it are read with a note. It also has a mark by which a user's own files are known
again (`own.py`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np

from simclr_jax import archives, documents, extras, files
from simclr_jax.closing import Closing
from simclr_jax.documents import Unfit
from simclr_jax.embedding import own
from simclr_jax.errors import UserError, printable

FORMAT = 1
SUFFIXES = (".npz", ".parquet")
ROWS = 16384  # of a Parquet row group
LAST = 2**53  # an example's number is below
COLUMNS = ("features", "names", "part", "examples", "labels")
REMEDY = "write it again with python -m simclr_jax.embed"
OLD = (
    "the embeddings were written by a version without checksums: if they were damaged since, "
    f"nobody can tell; {REMEDY}"
)


class Data(TypedDict):
    """Which images, as `embed` was asked for them."""

    data: str
    data_dir: str
    split: str


class About(TypedDict):
    """What a file says beside its rows; `fingerprints` are of the `parts`.

    `weights` is their checksum, `kind` which of a checkpoint's they are, see `saved.WEIGHTS`.
    """

    format: int
    checkpoint: str
    step: int
    weights: str
    tap: str
    data: Data
    parts: list[str]
    fingerprints: list[str]
    directory: str
    class_names: list[str]
    kind: NotRequired[str]
    content: NotRequired[str]
    mark: NotRequired[str]


@dataclasses.dataclass(frozen=True)
class Embeddings:
    """What the file holds.

    Attributes:
      features: float32 `[m, d]`.
      names: by which a person finds an image, `[m]` strings; paths below `about["directory"]`
        where the images are files.
      part: int32 `[m]`, which of `about["parts"]` an image is from.
      examples: int64 `[m]`, its position there.
      labels: int32 `[m]`, int8 `[m, classes]` (1, 0, -1 for ignored), or None.
      about: see `About`.
      own: it was read from a file that this user's `embed` has written, unchanged.
      notes: what a user should know about the file.
    """

    features: np.ndarray
    names: np.ndarray
    part: np.ndarray
    examples: np.ndarray
    labels: np.ndarray | None
    about: Any
    own: bool = False
    notes: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.features)


def read(path: str) -> Embeddings:
    """Read a file of embeddings.

    Raises:
      UserError: if there is none, it was not written by `embed`, or it was altered since.
    """
    place = Path(files.expand_home(path))
    if place.suffix not in SUFFIXES:
        raise UserError(f"--embeddings={path} must end in {' or '.join(SUFFIXES)}")
    try:
        if not files.is_local(path):
            raise FileNotFoundError
        columns, text = (_read_parquet if place.suffix == ".parquet" else _read_npz)(place)
        documents.parse(text, About)
        return _checked(columns, documents.parse(text, dict[str, Any]))
    except FileNotFoundError:
        raise UserError(
            f"--embeddings={path} is no file here: python -m simclr_jax.embed writes one"
        ) from None
    except Unfit as error:
        raise UserError(f"--embeddings={path} holds no embeddings ({error}): {REMEDY}") from error


def _checked(columns: dict[str, np.ndarray], about: dict[str, Any]) -> Embeddings:
    """Return rows with what is said of them; raise `Unfit` if they cannot belong together."""
    if about["format"] != FORMAT:
        raise Unfit(f"it has format {about['format']}, this is format {FORMAT}")
    found = Embeddings(**{name: columns.get(name) for name in COLUMNS}, about=about)  # type: ignore[arg-type]
    count = len(found.features) if found.features.ndim == 2 else -1
    if found.features.dtype != np.float32 or count < 0 or not found.features.shape[1]:
        raise Unfit(f"features are {_kind(found.features)}, not float32[images, numbers]")
    numbers, names = len(about["parts"]), len(about["class_names"])
    for name, kinds, least, most in (
        ("names", "U", None, None),
        ("part", "iu", 0, numbers),
        ("examples", "iu", 0, LAST),
    ):
        column = getattr(found, name)
        if column.shape != (count,) or column.dtype.kind not in kinds:
            raise Unfit(f"{name} are {_kind(column)}, for {count} images")
        if count and most is not None and not least <= column.min() <= column.max() < most:
            raise Unfit(f"{name} are {column.min()} to {column.max()}, of {most}")
    _check_labels(found.labels, count, names)
    if len(about["fingerprints"]) != numbers:
        raise Unfit(f"it has {numbers} parts and {len(about['fingerprints'])} fingerprints")
    if about.get("content") not in (None, _checksum(found)):
        raise Unfit("its rows were altered since it was written")
    bad = ~np.isfinite(found.features).all(axis=1)
    if bad.any():
        name = printable(str(found.names[np.argmax(bad)]))
        raise Unfit(f"features of {bad.sum()} images are no finite numbers, such as of {name}")
    notes = [] if "content" in about else [OLD]
    return dataclasses.replace(found, own=own.is_marked(about), notes=notes)


def _check_labels(labels: np.ndarray | None, count: int, names: int) -> None:
    if labels is None or not count:
        return
    if labels.dtype.kind not in "iu" or labels.ndim not in (1, 2) or len(labels) != count:
        raise Unfit(f"labels are {_kind(labels)}, for {count} images")
    most = (names or LAST) if labels.ndim == 1 else 2
    if not -1 <= labels.min(initial=0) <= labels.max(initial=0) < most:
        raise Unfit(f"labels are {labels.min()} to {labels.max()}, of {most}")
    if labels.ndim == 2 and names not in (0, labels.shape[1]):
        raise Unfit(f"labels are of {labels.shape[1]} classes, and there are {names}")


def _kind(array: np.ndarray) -> str:
    return f"{array.dtype}{list(array.shape)}"


def _checksum(found: Embeddings) -> str:
    """Return a digest of all columns, whatever the kind of file."""
    digest = hashlib.sha256()
    for name in COLUMNS:
        column = getattr(found, name)
        if column is None:
            continue
        shape = "text" if column.dtype.kind == "U" else str(column.dtype.newbyteorder("="))
        digest.update(f"{name} {shape} {list(column.shape)}".encode())
        if column.dtype.kind == "U":
            digest.update(json.dumps(column.tolist()).encode())
        else:
            digest.update(np.ascontiguousarray(column).data if column.size else b"")
    return f"sha256 {digest.hexdigest()}"


def writable(path: str, flag: str, suffixes: tuple[str, ...]) -> Path:
    """Return a path to write to, once it is sure that this will be possible.

    Raises:
      UserError: if the suffix is none of `suffixes` or there is no such directory to write to.
    """
    out = Path(files.expand_home(path))
    if out.suffix not in suffixes:
        raise UserError(f"{flag}={path} must end in {' or '.join(suffixes)}")
    files.check_file(str(out), flag)
    return out


@contextlib.contextmanager
def aside(out: Path) -> Iterator[Path]:
    """Yield a path beside `out` to write to, which becomes `out` when the block ends well."""
    path = out.with_name(f".{out.stem}.{uuid.uuid4().hex}{out.suffix}")
    files.sweep(out.parent)
    with Closing(lambda: path.unlink(missing_ok=True)) as stack:
        try:
            held = stack.enter(path.open("xb"))  # for as long as others write there, by its name
            files.hold(held)
            yield path
            path.replace(out)
        except OSError as error:
            raise UserError(
                f"{out} cannot be written ({error.strerror or error}): free space there, or name "
                "another file with --out"
            ) from error


def write(out: Path, embeddings: Embeddings) -> bool:
    """Write the file, whole or not at all; its suffix says which kind.

    Returns:
      Whether it bears this user's mark.

    Raises:
      UserError: if it cannot be written.
    """
    about = own.marked({**embeddings.about, "content": _checksum(embeddings)})
    marked = dataclasses.replace(embeddings, about=json.dumps(documents.sealed(about)))
    write_kind = _write_parquet if out.suffix == ".parquet" else _write_npz
    with aside(out) as path:
        write_kind(path, marked)
    return "mark" in about


def _write_npz(path: Path, e: Embeddings) -> None:
    arrays = {"features": e.features, "names": e.names, "part": e.part, "examples": e.examples}
    if e.labels is not None:
        arrays["labels"] = e.labels
    np.savez(path, about=np.array(e.about), **arrays)  # type: ignore[arg-type]


def _read_npz(path: Path) -> tuple[dict[str, np.ndarray], str]:
    found = archives.read(path, (*COLUMNS, "about"), REMEDY)
    if missing := {*COLUMNS, "about"} - {"labels"} - found.keys():
        raise Unfit(f"it has no {min(missing)}")
    about = found.pop("about")
    if about.shape or about.dtype.kind != "U":
        raise Unfit(f"about is {_kind(about)}")
    return found, str(about)


def _write_parquet(path: Path, e: Embeddings) -> None:
    pa = pyarrow()
    try:
        names = pa.array(e.names.tolist())
    except UnicodeEncodeError as error:
        raise UserError(
            f'Parquet cannot hold the name "{printable(str(error.object))}", which is no UTF-8: '
            "name a file that ends in .npz with --out; the features are kept"
        ) from None
    columns = {
        "name": names,
        "part": pa.array(e.part),
        "example": pa.array(e.examples),
        "features": pa.FixedSizeListArray.from_arrays(e.features.ravel(), e.features.shape[1]),
    }
    if e.labels is not None and e.labels.ndim == 2:
        columns["label"] = pa.FixedSizeListArray.from_arrays(e.labels.ravel(), e.labels.shape[1])
    elif e.labels is not None:
        columns["label"] = pa.array(e.labels)
    table = pa.table(columns).replace_schema_metadata({"simclr_jax": e.about})
    # Other programs that read the table notice damage by the checksums of its pages.
    pa.parquet.write_table(table, path, row_group_size=ROWS, write_page_checksum=True)


def _read_parquet(path: Path) -> tuple[dict[str, np.ndarray], str]:
    pa = pyarrow()
    try:
        with path.open("rb") as opened:
            file = pa.parquet.ParquetFile(
                opened, read_dictionary=["name"], page_checksum_verification=True
            )
            about = (file.schema_arrow.metadata or {})[b"simclr_jax"].decode()
            _check_size(pa, file)
            table = file.read()
        columns = {name: table[name].combine_chunks() for name in table.column_names}
        return {
            "features": _array(columns["features"]),
            "names": _text(columns["name"]),
            "part": _array(columns["part"]),
            "examples": _array(columns["example"]),
            **({"labels": _array(columns["label"])} if "label" in columns else {}),
        }, about
    except (FileNotFoundError, Unfit):
        raise
    except KeyError as error:
        raise Unfit(f"it has no {error}") from error
    except Exception as error:  # a damaged table fails in any of Arrow's ways
        raise Unfit(" ".join(str(error).split()) or type(error).__name__) from error


def _check_size(pa: Any, file: Any) -> None:
    """Raise `Unfit` if the rows that a table claims would not fit into memory."""
    width = 0
    for field in file.schema_arrow:
        size = field.type.list_size if pa.types.is_fixed_size_list(field.type) else 1
        width += 8 * size
    claimed, free = width * file.metadata.num_rows, archives.free_memory() * archives.SHARE
    if claimed > free:
        raise Unfit(f"it claims {claimed / 1e9:.3g} GB, and {free / 1e9:.3g} GB are free")


def _array(column: Any) -> np.ndarray:
    if column.null_count:
        raise Unfit(f"a column has {column.null_count} empty cells")
    if not hasattr(column.type, "list_size"):
        return column.to_numpy(zero_copy_only=False)
    if column.values.null_count:
        raise Unfit(f"a column has {column.values.null_count} empty cells")
    return column.flatten().to_numpy().reshape(len(column), column.type.list_size)


def _text(column: Any) -> np.ndarray:
    """Return strings; of a table each may be long and occur once, in an array all are as long."""
    if column.null_count or not hasattr(column, "dictionary"):
        raise Unfit("the names are no strings")
    known = column.dictionary.to_pylist()
    longest = max((len(name) for name in known), default=1)
    claimed = 4 * longest * len(column)
    if claimed > archives.free_memory() * archives.SHARE:
        raise Unfit(f"its names claim {claimed / 1e9:.3g} GB, for one has {longest} letters")
    return np.array(known, str)[column.indices.to_numpy()] if known else np.zeros(0, str)


def pyarrow() -> Any:
    """Return the module that reads and writes Parquet, or raise `UserError`."""
    try:
        import pyarrow as pa
        import pyarrow.parquet
    except ImportError:
        raise UserError(
            f"Parquet files need pyarrow: {extras.install('parquet')}, or use .npz"
        ) from None
    return pa
