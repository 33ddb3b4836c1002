"""What results are called: words for what was judged, and a tag for what the words leave out.

    lbfgs-h                      the run's own data, all defaults
    knn20-z-10pct_labels-seed1   a share of the labels
    photos-lbfgs-h-3fa2c1        --data=DIR/photos; the tag tells it from another directory `photos`
    lbfgs-h-step450              of the checkpoint RUN@450
    lbfgs-h-average              of the moving average of its weights

The same command writes the same file again; another one never does. What has changed since without
a word of the command (the newest checkpoint, the images) is no reason to lose the older result:
`set_aside` keeps it under a name of its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from etils import epath

from simclr_jax import documents, files
from simclr_jax.errors import BadFile
from simclr_jax.judging import results
from simclr_jax.judging.datasets import Data, Wanted
from simclr_jax.stages import labels as label_choice
from simclr_jax.train.saved import TRAINED, Saved

TAG = 6  # digits


def name(
    *words: str,
    labels: str = label_choice.ALL,
    seed: int = 0,
    beyond: Mapping[str, Any] | None = None,
    tail: str = "",
) -> str:
    """Return the name of a result.

    Args:
      words: what a person would call it; "" are left out.
      labels: which it learned from, see `stages.labels.allowed`.
      seed: of the draw, and of all else that is drawn.
      beyond: what else decides the number and is not as it would be without a word.
      tail: a last word.
    """
    beyond = dict(beyond or {})
    if (said := label_choice.describe(labels)) != labels:  # a file, and another may have its name
        beyond["labels"] = said
    drawn = label_choice.tag(labels, seed) or (f"seed{seed}" if seed else "")
    parts = (*words, drawn, tag(beyond) if beyond else "", tail)
    return "-".join(part for part in parts if part)


def of_weights(run: Saved, named: str) -> str:
    """Return the tail that tells weights from those of a plain RUN; `named` is as the user did."""
    words = [] if run.weights == TRAINED else [run.weights]
    words += [f"step{run.step}"] if named.endswith(f"@{run.step}") else []
    return "-".join(words)


def tag(beyond: Any) -> str:
    """Return a few digits that tell some settings from others."""
    said = json.dumps(beyond, sort_keys=True, default=str)
    return hashlib.sha256(said.encode()).hexdigest()[:TAG]


def of_data(wanted: Wanted, data: Data) -> dict[str, Any]:
    """Return what tells the images that were asked for from the run's own, nothing if they are."""
    found: dict[str, Any] = {
        field.name: getattr(wanted, field.name)
        for field in dataclasses.fields(wanted)
        if getattr(wanted, field.name) != field.default
    }
    for place in ("data", "data_dir"):
        if place in found:
            found[place] = _place(found[place])
    if wanted.data:
        parts = (data.fit, data.choose, data.score)
        found["images"] = [None if part is None else part.fingerprint() for part in parts]
    return found


def _place(named: str) -> str:
    """Return one spelling of a directory or a file; what is neither stays."""
    path = Path(files.expand_home(named)) if files.is_local(named) else None
    return os.path.realpath(path) if path is not None and path.exists() else named


def set_aside(workdir: epath.PathLike, result: Mapping[str, Any]) -> Iterator[str]:
    """Give an older result of the same name, but of other weights or images, another name.

    To be called before `results.write`.

    Yields:
      A sentence, if there was one.
    """
    directory = epath.Path(workdir) / "results"
    path = directory / f"{result['name']}.json"
    try:
        old = results.read(path)
    except FileNotFoundError:
        return
    except BadFile as error:  # it may be another result, under this name by mistake
        with contextlib.suppress(FileNotFoundError, BadFile):
            kept = files.keep_damaged(path, documents.content(path))
            yield f"the older result {path.stem} is kept as {kept}, for {error}"
        return
    if _judged(old) == _judged(result):
        return
    step = old.get("checkpoint", {}).get("step")
    other = f"{old['name']}-step{step}"
    same = step is None or step == result.get("checkpoint", {}).get("step")
    if same or _taken(directory / f"{other}.json", old):
        other = f"{old['name']}-{tag(_judged(old))}"
    arrays = directory / f"{old['name']}.npz"
    if arrays.exists():
        files.write_atomically(directory / f"{other}.npz", arrays.read_bytes())
    documents.write(directory / f"{other}.json", {**old, "name": other})
    yield (
        f"the older result {old['name']} was of another checkpoint or other images: it is kept as "
        f"{other}"
    )


def _taken(path: epath.Path, result: Mapping[str, Any]) -> bool:
    """Tell whether a file is there that is of other weights or images than a result."""
    try:
        return _judged(results.read(path)) != _judged(result)
    except FileNotFoundError:
        return False
    except BadFile:  # of which nobody knows
        return True


def _judged(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was judged: weights, and images."""
    checkpoint, data = result.get("checkpoint", {}), result.get("data", {})
    splits = {role: data.get(role) for role in ("fit", "validation", "test")}
    told = {role: split.get("fingerprint", "") for role, split in splits.items() if split}
    weights = {key: checkpoint.get(key) for key in ("step", "weights")}
    return weights | told
