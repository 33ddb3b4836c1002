"""From a set of images to a file of their embeddings."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from simclr_jax import files, given_data
from simclr_jax.data import sources
from simclr_jax.data.sources import Source, Trained, Unseen
from simclr_jax.data.sources.folder import Folder
from simclr_jax.embedding import embeddings
from simclr_jax.embedding.embeddings import Embeddings
from simclr_jax.errors import Unreachable, UserError, choose
from simclr_jax.judging import datasets, feature_bank
from simclr_jax.judging.feature_bank import Say, cache_of
from simclr_jax.stages import heritage
from simclr_jax.stages.encoder import Encoder, check_tap
from simclr_jax.train import saved
from simclr_jax.unlabelled import NO_LABEL


@dataclasses.dataclass(frozen=True)
class Options:
    """What to embed with which run.

    Attributes:
      checkpoint: a workdir, or `WORKDIR@STEP`.
      out: the file to write, `.npz` or `.parquet`.
      data, data_dir: as in `datasets.Wanted`.
      split: splits, with commas; "": all of other data, or those that the run trains on and is
        evaluated on.
      tap: which vector, see `encoder.taps`.
      cache: where features are kept; "": in the workdir, "none": nowhere.
      weights: one of `saved.WEIGHTS`.
    """

    checkpoint: str
    out: str
    data: str = ""
    data_dir: str = ""
    split: str = ""
    tap: str = "h"
    cache: str = ""
    weights: str = saved.TRAINED


def run(options: Options, say: Say = print) -> None:
    """Embed images and write the file.

    Features are kept shard by shard, so the same command continues where it was interrupted.

    Raises:
      UserError: if the file cannot be written, or the run or the images cannot be opened.
    """
    out = embeddings.writable(options.out, "--out", embeddings.SUFFIXES)
    if out.suffix == ".parquet":
        embeddings.pyarrow()  # missing: say so now
    read = saved.of_weights(saved.read(options.checkpoint), options.weights)
    # Unreadable images are left out and named, however many they are: what can be is embedded.
    encoder = Encoder.of(read).changed({"data.max_bad_fraction": 1.0})
    check_tap("--tap", options.tap, encoder.config)
    say(f"encoder   {encoder.run}, tap {options.tap}, images of {encoder.size} pixels")
    parts = open_parts(read, options.data, options.data_dir, options.split, say)
    for name, source in parts.items():
        say(f"images    {len(source)} of {name}")
    for note in dict.fromkeys(note for source in parts.values() for note in sources.notes(source)):
        say(f"note      {note}")
    cache = cache_of(read.workdir, options.cache)
    found = {
        name: feature_bank.extract(encoder, source, (options.tap,), cache, say)[options.tap]
        for name, source in parts.items()
    }
    rows = _collect(parts, found, _about(options, read, encoder, parts))
    marked = embeddings.write(out, rows)
    count, dimension = rows.features.shape
    say(f"written   {out}: {count} images, {dimension} numbers each")
    if not marked:
        say(
            f"note      no key can be kept in {files.cache_directory()}: search will ask for "
            "--images"
        )
    say(f"search    python -m simclr_jax.search --embeddings={out}")


def open_parts(
    read: saved.Saved, data: str, data_dir: str, split: str, say: Say = lambda line: None
) -> dict[str, Source]:
    """Open the images, by the name of the part: some splits, all of other data, or the run's two.

    Labels are used where there are any; labels that cannot be used are no reason to stop. The first
    part notes which splits are left out.

    Args:
      read: the run.
      data, data_dir, split: as in `Options`.
      say: receives why there are no labels.
    """
    names = [name for name in split.split(",") if name]
    wanted = datasets.Wanted(data, data_dir, split=names[0] if names and data else "")
    recipe = datasets.recipe_data(read.config, wanted)
    kept = None if data else read.workdir / "index"
    trained = heritage.of_record(read.record, read.workdir)
    try:
        return _opened(recipe, kept, names, trained)
    except Unreachable:
        raise
    except UserError as error:
        with recipe.unlocked():
            recipe.labels = False
        found = _opened(recipe, kept, names, trained)
        say(f"note      labels are left out: {error}")
        return found


def _opened(
    recipe: ConfigDict, kept: Any, names: list[str], trained: Sequence[Trained]
) -> dict[str, Source]:
    found = sources.find(recipe, kept)
    for name in names:
        choose("--split", name, found)
    if names:
        parts = {name: found[name]() for name in names}
        return parts | {names[0]: sources.noted(parts[names[0]], sources.unused(found, names))}
    if kept is None and recipe.eval_split not in found and len(found) == 1:
        (whole,) = (open_it() for open_it in found.values())
        if len(whole) == 1:  # of which nothing can be held out, and nothing has to be
            return {recipe.split: whole}
    used = (recipe.split, recipe.eval_split)
    others = sorted(found.keys() - {*used}) if kept is None else []
    unseen = Unseen(trained, scored=False)
    opened = sources.open_all(recipe, kept, unseen, found=found, also=others)
    held_out = recipe.eval_split if recipe.eval_split in found else f"held out of {recipe.split}"
    own = {recipe.split: opened.train, held_out: opened.test}
    return own | {name: found[name]() for name in others}


def _about(
    options: Options, read: saved.Saved, encoder: Encoder, parts: dict[str, Source]
) -> dict[str, Any]:
    first = next(iter(parts.values()))
    labelled = next((source for source in parts.values() if source.classes), first)
    data = options.data
    layout, path = given_data.layout_of(data)
    if data and Path(path).expanduser().exists():  # found again from any directory
        prefix = "" if layout == "auto" else f"{layout}:"
        data = f"{prefix}{_absolute(path)}"
    return {
        "format": embeddings.FORMAT,
        "checkpoint": f"{_absolute(os.fspath(read.workdir))}@{read.step}",
        "step": read.step,
        "weights": encoder.fingerprint,
        **({"kind": read.weights} if read.weights != saved.TRAINED else {}),
        "tap": options.tap,
        "data": {"data": data, "data_dir": _absolute(options.data_dir), "split": options.split},
        "parts": list(parts),
        "fingerprints": [source.fingerprint() for source in parts.values()],
        "directory": str(first.index.path.absolute()) if isinstance(first, Folder) else "",
        "class_names": datasets.class_names(labelled),
    }


def _absolute(path: str) -> str:
    """Return a path by which a directory is found again from any other; one in a bucket is that."""
    return str(Path(path).expanduser().absolute()) if path and files.is_local(path) else path


def _collect(
    parts: dict[str, Source], found: dict[str, feature_bank.Features], about: dict[str, Any]
) -> Embeddings:
    rows = list(found.values())
    names = [_names(source, x) for source, x in zip(parts.values(), rows, strict=True)]
    flat = [name for some in names for name in some]
    if len(set(flat)) < len(flat):  # numbers, which each part has anew
        flat = [f"{part}: {name}" for part, some in zip(parts, names, strict=True) for name in some]
    return Embeddings(
        features=np.concatenate([x.x for x in rows]),
        names=np.array(flat),
        part=np.repeat(np.arange(len(rows), dtype=np.int32), [len(x) for x in rows]),
        examples=np.concatenate([x.examples for x in rows]),
        labels=_labels(rows),
        about=about,
    )


def _labels(rows: list[feature_bank.Features]) -> np.ndarray | None:
    """Return the labels of all parts, `NO_LABEL` in one that has none; None if none has any."""
    shapes = {x.labels.shape[1:] for x in rows if x.labels is not None}
    if len(shapes) != 1:
        return None
    (shape,) = shapes
    none = [np.full((len(x), *shape), NO_LABEL, np.int8) for x in rows]
    return np.concatenate(
        [n if x.labels is None else x.labels for x, n in zip(rows, none, strict=True)]
    )


def _names(source: Source, found: feature_bank.Features) -> list[str]:
    root = ""
    if isinstance(source, Folder) and source.root != source.index.path:
        root = f"{source.root.relative_to(source.index.path)}/"
    return [root + source.name(int(i)) for i in found.examples]
