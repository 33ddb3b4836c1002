"""What a run, and the runs whose weights or answers it has, have trained on: images and labels.

Each run keeps the whole list in its `config.json`, so that it stands when the other runs are gone:
itself first, an entry for each split, then those it comes from. Of runs that are older than the
list it is made here.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from simclr_jax import declaration, fields, files, records
from simclr_jax.data import sources
from simclr_jax.data.sources import NO_LABEL, Opened, Source, Trained, trained
from simclr_jax.data.sources.together import Together
from simclr_jax.data.sources.trained import Here, Labels
from simclr_jax.errors import UserError
from simclr_jax.stages import labels as label_choice
from simclr_jax.stages import warm_start
from simclr_jax.train import saved, stored
from simclr_jax.unlabelled import counted

KEY, NOTES = "trained_on", "notes"  # of `config.json`
REMEDY = (
    "name other images in data.eval_split, or score these all the same by --config.eval.seen=True"
)

T = TypeVar("T")

# From a run, as `init.run` or `distill.teacher` names it, and the field, to what it trained on.
Read = Callable[[str, str], list[Trained]]


def of_recipe(config: ConfigDict, read: Read | None = None) -> list[Trained]:
    """Return what the runs that a recipe starts from, or learns from, have trained on.

    Args:
      config: a recipe.
      read: looks a run up; by default on disk.

    Raises:
      UserError: if there is no such run.
    """
    read, found = read or of_run, list[Trained]()
    if parts := warm_start.wanted(config):
        taught = bool({*parts} & {*warm_start.LINEAR})
        found += _of_use(read(config.init.run, "init.run"), taught)
    if config.stage == "distill":
        found += _of_use(read(config.distill.teacher, "distill.teacher"), True)
    return list(dict.fromkeys(found))


def of_run(run: str, flag: str) -> list[Trained]:
    """Return what a run, `WORKDIR` or `WORKDIR@STEP`, and those it comes from have trained on."""
    there = saved.describe(run, flag)
    return of_record(there.record, there.workdir)


def of_workdir(workdir: epath.PathLike, config: ConfigDict) -> list[Trained]:
    """Return what the run in a directory, whose recipe is `config`, has trained on; see `of_run`.

    Without `config.json` its checkpoints say it; of a directory without either, the recipe has to
    do.
    """
    record = stored.of_run(workdir) or config.to_dict()
    return of_record(record, epath.Path(workdir))


def of_record(
    record: Mapping[str, Any], workdir: epath.Path, later: tuple[str, ...] = ()
) -> list[Trained]:
    """Return what the run of a record has trained on, itself first.

    A converted checkpoint says nothing about its images.

    Args:
      record: `config.json`.
      workdir: of the run.
      later: the workdirs of runs that come from it, of which none can be its source.

    Raises:
      UserError: if the record is damaged.
    """
    if record.get("converted"):
        return []
    name = f"{workdir}/config.json"
    if found := recorded(record, name):
        return named(found, os.fspath(workdir))
    config = records.recipe(record)
    own = _of_old(config, _held(record, "images", list[str], name), workdir)
    chain = (*later, os.fspath(workdir))
    return [own, *of_recipe(config, lambda run, _: _of_old_source(run, own, chain))]


def recorded(record: Mapping[str, Any], name: str = "config.json") -> list[Trained]:
    """Return the list in a record, empty if the run is too old to have one.

    Raises:
      UserError: if it is damaged.
    """
    return _held(record, KEY, list[Trained], name)


def named(found: Sequence[Trained], run: str) -> list[Trained]:
    """Return the list of a run as others read it, who know where the run lies."""
    count = _own_entries(found)
    return [msgspec.structs.replace(one, run=run) for one in found[:count]] + [*found[count:]]


def of_others(found: Sequence[Trained]) -> list[Trained]:
    """Return what the runs that a run comes from have trained on, of the run's own list."""
    return [*found[_own_entries(found) :]]


def _own_entries(found: Sequence[Trained]) -> int:
    """Return how many entries of a run's list are of itself: they name no run."""
    return next((i for i, one in enumerate(found) if i and one.run), len(found))


def notes(record: Mapping[str, Any], name: str = "config.json") -> tuple[str, ...]:
    """Return what a run said of its scored images when it began, if it is not too old for it.

    Raises:
      UserError: if it is damaged.
    """
    return tuple(_held(record, NOTES, list[str], name))


def _held(record: Mapping[str, Any], key: str, kind: type[list[T]], name: str) -> list[T]:
    try:
        return msgspec.convert(record.get(key, []), kind)
    except msgspec.ValidationError as error:
        raise UserError(f"{key} in {name} is damaged ({error}): restore the file") from error


def own(config: ConfigDict, opened: Opened, train: Source) -> list[Trained]:
    """Return what a run of a recipe trains on, an entry for each split.

    Args:
      config: a recipe.
      opened: its images.
      train: those to learn from, without labels that may not be used.
    """
    whole = opened.whole
    if isinstance(whole, Together):
        assert isinstance(train, Together) and opened.held_out is None, "it is all of them"
        parts = zip(whole.splits, whole.taken, train.taken, strict=True)
        return [_own(config, s, of, None, _own_labels(config, part)) for s, of, part in parts]
    return [_own(config, config.data.split, whole, opened.held_out, _own_labels(config, train))]


def _own(
    config: ConfigDict, split: str, whole: Source, held_out: int | None, labels: Labels | None
) -> Trained:
    return Trained(
        run="",  # whoever reads it knows from where
        split=trained.called(config.data, split),
        images=len(whole),
        identity=trained.identity(whole),
        held_out=held_out,
        parts=trained.parts(whole, config.data, split),
        labels=labels,
        sizes=trained.sizes(whole),
    )


def _own_labels(config: ConfigDict, train: Source) -> Labels | None:
    if config.stage in fields.LABELLED:
        if not label_choice.needed(config):
            return None
        return Labels(config.labels.use, config.labels.seed, label_choice.count(config, train))
    taught = declaration.find(config.method).labels
    if not train.classes or not (taught or config.eval.probe):
        return None
    count, exact = trained.labelled(train)
    return Labels(label_choice.ALL, 0, count, encoder=taught, exact=exact)


def _of_use(found: list[Trained], classifier: bool) -> list[Trained]:
    """Leave away labels that only a classifier knows which is not taken over."""
    if not found or found[0].labels is None or found[0].labels.encoder:
        return found
    labels = msgspec.structs.replace(found[0].labels, encoder=True) if classifier else None
    return [msgspec.structs.replace(found[0], labels=labels), *found[1:]]


def _of_old(config: ConfigDict, images: Sequence[str], workdir: epath.Path) -> Trained:
    """Say what a run has trained on that did not say so itself, from its recipe.

    `images`, fingerprints of what it trained on and of what it held out, tell whether the images
    are still those.
    """
    c, index = config.data, workdir / "index"
    try:
        opened = sources.open_all(c, index if index.exists() else None)
    except UserError:  # which they were is not known any more, but where they lay
        called, parts = trained.called(c, c.split), trained.said(c, c.split)
        return Trained(os.fspath(workdir), called, 0, "", None, parts)
    train = opened.train
    now: tuple[Source | None, Source]
    try:
        if config.stage in fields.LABELLED:
            train = label_choice.restrict(config, train)
        now, labels = (train, opened.test), _own_labels(config, train)
    except UserError:  # a list of names is gone or has changed: what is held out has to tell
        use, most = config.labels, trained.labelled(train)[0]
        now, labels = (None, opened.test), Labels(use.use, use.seed, most, exact=False)
    pairs = zip(now, images, strict=False)  # a run may be too old to have any
    known = all(source is None or source.fingerprint() == image for source, image in pairs)
    found = _own(config, c.split, opened.whole, opened.held_out, labels)
    found = msgspec.structs.replace(found, run=os.fspath(workdir))
    return found if known else msgspec.structs.replace(found, identity="")


def _of_old_source(run: str, own: Trained, chain: tuple[str, ...]) -> list[Trained]:
    """Return what a source of an old run, the last of `chain`, has trained on.

    One that is gone is taken to have been pretrained on the images of the run, without labels,
    which holds out the fewest.
    """
    path = saved.split(files.expand_home(run))[0]
    beside = epath.Path(chain[-1]).parent / epath.Path(path).name  # a pipeline may have been moved
    for place in (epath.Path(path), beside):
        if os.fspath(place) not in chain and (record := stored.of_run(place)) is not None:
            return of_record(record, place, chain)
    if own.held_out is None:
        return []
    fewest = min(own.held_out, sources.MOST_WITHOUT_LABELS)
    gone = f"{path}, which is gone and"
    return [msgspec.structs.replace(own, run=gone, held_out=fewest, labels=None)]


@dataclasses.dataclass(frozen=True)
class Budget:
    """Labels that a run and those it comes from have learned from.

    Attributes:
      total: how many.
      exact: whether it is known so; otherwise they are this many at most.
      line: about it.
    """

    total: int
    exact: bool = True
    line: str = ""

    def __str__(self) -> str:
        return f"{self.total}" if self.exact else f"at most {self.total}"

    @property
    def protocol(self) -> dict[str, str]:
        """Return what results say of it."""
        return {"labels in all": str(self)} if self.line else {}


def budget(config: ConfigDict, opened: Opened, train: Source, before: Sequence[Trained]) -> Budget:
    """Count the labels that a run will know of, its own and those of the runs it comes from.

    Args:
      config: a recipe of a stage with labels.
      opened: its images.
      train: those to learn from, without labels that may not be used.
      before: see `of_recipe`.

    Raises:
      UserError: if `labels.use` asks for few labels, and they are neither among those that the
        other runs have used nor hold them: then there would be more of them than anybody said.
    """
    taught = [one for one in before if one.labels is not None]
    needed = label_choice.needed(config)
    if not taught:
        count = label_choice.count(config, train) if needed else 0
        return Budget(count, line=f"{count}: {label_choice.in_words(config)}" if needed else "")
    mine = _chosen(config.labels, opened.held_out, opened.whole) if needed else np.arange(0)
    assert mine is not None  # they have been chosen before
    theirs, others = labels_of(taught, opened.whole)
    total = np.union1d(mine, theirs)
    few = needed and config.labels.use != label_choice.ALL
    if few and len(total) > max(len(mine), len(theirs)):
        here, more = Here.of(opened.whole), len(total) - len(theirs)
        same = [t for t in taught if here.was(t)]
        one = same[0].labels
        assert one is not None
        raise UserError(
            f"labels.use={config.labels.use} with labels.seed={config.labels.seed} has {more} "
            f"label(s) that are not among the {len(theirs)} of "
            f"{' and '.join(t.run for t in same)}, so that there are {len(total)} in all: use "
            f"those, --config.labels.use={one.use} --config.labels.seed={one.seed}, or more that "
            "hold them"
        )
    apart = bool(len(total)) + len(others)  # sets that may have labels in common
    exact = apart < 2 and all(t.labels.exact for t in taught if t.labels is not None)
    found = Budget(len(total) + sum(others), exact)
    parts = [f"{len(mine)} of this run ({label_choice.in_words(config)})"] if needed else []
    parts += [f"{t.labels} of {t.run}" for t in taught if t.labels is not None]
    line = f"{found} in all that anything here has learned from: {', '.join(parts)}"
    return dataclasses.replace(found, line=line)


def labels_of(taught: Sequence[Trained], whole: Source) -> tuple[np.ndarray, list[int]]:
    """Return whose labels of `whole` runs have learned from, and of each other set the number."""
    here, found, others = Here.of(whole) if taught else None, [], dict[Any, int]()
    for one in taught:
        if one.labels is None:
            continue
        rows = None
        if here is not None and here.was(one):
            rows = _chosen(one.labels, one.held_out, whole)
        everything = one.labels.use == label_choice.ALL
        if rows is not None and (everything or len(rows) == one.labels.count):
            found.append(rows)
        else:  # of other images; runs that drew alike have the same
            drawn = (one.identity, one.sizes, one.held_out, one.labels.use, one.labels.seed)
            others[drawn] = one.labels.count
    together = np.unique(np.concatenate(found)) if found else np.arange(0)
    return together, [*others.values()]


def _chosen(labels: Any, held_out: int | None, whole: Source) -> np.ndarray | None:
    """Return the images of a split whose labels a run may use; None if it cannot be known.

    Args:
      labels: `use` and `seed`.
      held_out: how many of the images the run holds out.
      whole: the split.
    """
    known = whole.labels
    if known is None or (known.ndim == 2 and labels.use != label_choice.ALL):
        return None
    rows = trained.rows(len(whole), held_out)[0]
    if known.ndim == 2:
        return rows[counted(known[rows])]
    places = np.flatnonzero(known[rows] != NO_LABEL)
    by_name = whole.take(rows) if label_choice.is_file(labels.use) else whole
    known = known[rows[places]]
    try:
        chosen = label_choice.allowed(labels.use, known, places, by_name, labels.seed)
        return rows[places[chosen]]
    except UserError:  # a list of names that has changed or gone
        return None
