"""Files of embeddings: a NumPy archive or a Parquet table, one row per image.

features    float32 [m, d]
name(s)     strings; paths below the images' directory where they are files
part        which of `about["parts"]` an image is from, and example, its position there
label(s)    integers, or a list of 1, 0 and -1 (ignored) for each class; absent without labels
about       JSON: checkpoint, step, tap, data, names of the classes (Parquet: metadata)
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import uuid
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from simclr_jax.closing import Closing
from simclr_jax.errors import UserError

FORMAT = 1
SUFFIXES = (".npz", ".parquet")
ROWS = 16384  # of a Parquet row group


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
      about: checkpoint, step, tap, data, and the names of the classes.
    """

    features: np.ndarray
    names: np.ndarray
    part: np.ndarray
    examples: np.ndarray
    labels: np.ndarray | None
    about: dict[str, Any]

    def __len__(self) -> int:
        return len(self.features)


def read(path: str) -> Embeddings:
    """Read a file of embeddings.

    Raises:
      UserError: if there is none, or it was not written by `embed`.
    """
    suffix = Path(path).suffix
    if suffix not in SUFFIXES:
        raise UserError(f"--embeddings={path} must end in {' or '.join(SUFFIXES)}")
    if not Path(path).is_file():
        raise UserError(f"--embeddings={path} is no file: python -m simclr_jax.embed writes one")
    try:
        found = _read_parquet(path) if suffix == ".parquet" else _read_npz(path)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError) as error:
        raise UserError(
            f"--embeddings={path} holds no embeddings ({error}): python -m simclr_jax.embed "
            "writes such a file"
        ) from error
    if found.about["format"] != FORMAT:
        raise UserError(
            f"--embeddings={path} has format {found.about['format']}, this is format {FORMAT}: "
            "write it again with python -m simclr_jax.embed"
        )
    return found


def writable(path: str, flag: str, suffixes: tuple[str, ...]) -> Path:
    """Return a path to write to, once it is sure that this will be possible.

    Raises:
      UserError: if the suffix is none of `suffixes` or there is no such directory to write to.
    """
    out = Path(path).expanduser()
    if out.suffix not in suffixes:
        raise UserError(f"{flag}={path} must end in {' or '.join(suffixes)}")
    if out.is_dir() or not out.parent.is_dir() or not os.access(out.parent, os.W_OK):
        raise UserError(f"{flag}={path} cannot be written: name a file in a directory of yours")
    return out


@contextlib.contextmanager
def aside(out: Path) -> Iterator[Path]:
    """Yield a path beside `out` to write to, which becomes `out` when the block ends well."""
    path = out.with_name(f".{out.stem}.{uuid.uuid4().hex}{out.suffix}")
    with Closing(lambda: path.unlink(missing_ok=True)):
        try:
            yield path
            path.replace(out)
        except OSError as error:
            raise UserError(
                f"{out} cannot be written ({error.strerror or error}): free space there, or name "
                "another file with --out"
            ) from error


def write(out: Path, embeddings: Embeddings) -> None:
    """Write the file, whole or not at all; its suffix says which kind."""
    write_kind = _write_parquet if out.suffix == ".parquet" else _write_npz
    with aside(out) as path:
        write_kind(path, embeddings)


def _write_npz(path: Path, e: Embeddings) -> None:
    arrays = {"features": e.features, "names": e.names, "part": e.part, "examples": e.examples}
    if e.labels is not None:
        arrays["labels"] = e.labels
    np.savez(path, about=np.array(json.dumps(e.about)), **arrays)  # type: ignore[arg-type]


def _read_npz(path: str) -> Embeddings:
    with np.load(path) as archive:
        about = json.loads(str(archive["about"]))
        labels = archive["labels"] if "labels" in archive.files else None
        return Embeddings(
            archive["features"],
            archive["names"],
            archive["part"],
            archive["examples"],
            labels,
            about,
        )


def _write_parquet(path: Path, e: Embeddings) -> None:
    pa = pyarrow()
    columns = {
        "name": pa.array(e.names.tolist()),
        "part": pa.array(e.part),
        "example": pa.array(e.examples),
        "features": pa.FixedSizeListArray.from_arrays(e.features.ravel(), e.features.shape[1]),
    }
    if e.labels is not None and e.labels.ndim == 2:
        columns["label"] = pa.FixedSizeListArray.from_arrays(e.labels.ravel(), e.labels.shape[1])
    elif e.labels is not None:
        columns["label"] = pa.array(e.labels)
    table = pa.table(columns).replace_schema_metadata({"simclr_jax": json.dumps(e.about)})
    pa.parquet.write_table(table, path, row_group_size=ROWS)


def _read_parquet(path: str) -> Embeddings:
    table = pyarrow().parquet.read_table(path)
    about = json.loads((table.schema.metadata or {})[b"simclr_jax"])

    def column(name: str) -> np.ndarray:
        whole = table[name].combine_chunks()
        if hasattr(whole, "flatten"):
            return whole.flatten().to_numpy().reshape(len(whole), -1)
        return whole.to_numpy(zero_copy_only=False)

    return Embeddings(
        features=column("features"),
        names=column("name").astype(str),
        part=column("part"),
        examples=column("example"),
        labels=column("label") if "label" in table.column_names else None,
        about=about,
    )


def pyarrow() -> Any:
    """Return the module that reads and writes Parquet, or raise `UserError`."""
    try:
        import pyarrow as pa
        import pyarrow.parquet
    except ImportError:
        raise UserError("Parquet files need pyarrow: pip install pyarrow, or use .npz") from None
    return pa
