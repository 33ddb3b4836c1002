"""Packing: from a source to a store, which has its name only once it is whole."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from etils import epath
from ml_collections import ConfigDict

from simclr_jax import closing, documents, fields, files, recipes
from simclr_jax.data import sources
from simclr_jax.data.decode import Rules
from simclr_jax.data.packing import finish, records, shards, workers
from simclr_jax.data.packing import plan as plans
from simclr_jax.data.packing.plan import Plan
from simclr_jax.data.packing.shards import Job, Shard
from simclr_jax.data.reader import Unreadable
from simclr_jax.data.sources import Images, Source, packed_files
from simclr_jax.data.sources.packed_files import KEPT, PARTIAL
from simclr_jax.data.sources.tfds_records import Records
from simclr_jax.errors import Unreachable, UserError, choose

Say = Callable[[str], object]


@dataclasses.dataclass(frozen=True)
class Options:
    """What to make.

    Attributes:
      out: the directory, which is not there yet.
      kind: of records: uint8 or jpeg.
      side: to which the shorter side is shrunk, pixels.
      square: cut out the centre, so that all images have one size.
      quality: of JPEGs.
      splits: their names; none: all there are.
      workers: processes; None: one for each core.
    """

    out: str
    kind: str = "uint8"
    side: int = 256
    square: bool = False
    quality: int = 92
    splits: Sequence[str] = ()
    workers: int | None = None


def pack(config: ConfigDict, options: Options, say: Say = print) -> None:
    """Pack the data set of a recipe.

    The same call goes on where another was interrupted, and the store has the same bytes in the
    end. It is made in a directory beside, which is renamed once all is there.

    Args:
      config: the recipe.
      options: what to make.
      say: receives lines about it.

    Raises:
      UserError: for whatever a user can put right.
    """
    fields.known(config)
    if config.data.source is None:
        raise UserError(
            "the recipe leaves data.source open, to be that of another run: give that run's "
            "recipe, or --config.data.source and --config.data.path"
        )
    fields.check_values(config)
    fields.check_paths(config)
    out, data = _place(options.out), config.data
    law = records.law(
        options.kind,
        options.side,
        options.square,
        options.quality,
        Rules.of(data),
        _sizes(config),
    )
    data, opened, notes = _open(data, options.splits, say)
    source = plans.source_of(data)
    say(f"pack      {documents.shown(out)}: {law}")
    of = [f"{len(one)} of {name} ({_labelled(one)})" for name, one in opened.items()]
    say(f"images    {', '.join(of)}, from {packed_files.called(source)}")
    for note in notes:
        say(f"note      {note}")
    size = plans.sizes(opened, law)
    plan = plans.make(data, opened, law, size)
    partial = out.with_name(f"{out.name}{PARTIAL}")
    for place in filter(_is_whole, (out, partial)):
        _check_same(place, plan, data)
        if place == partial:  # it was about to be renamed
            _rename(partial, out)
        say(f"whole     {documents.shown(out)} is there already, of these images")
        return
    with closing.Closing() as stack:
        plan = _begin(partial, plan, data, opened, stack, size, say)
        _write(partial, plan, data, opened, options, say)
        # Hours may have passed; a worker that began late has read what is there now.
        _check_unchanged(partial, plan, data, f"remove {documents.shown(partial)} to pack anew")
        finish.finish(partial, plan, source, opened)
        _rename(partial, out)
    total = sum(path.stat().st_size for path in out.iterdir())
    say(f"written   {documents.shown(out)}: {_bytes(total)}")
    say(f"use it    any recipe with --config.data.source=packed --config.data.path={out}")


def _sizes(config: ConfigDict) -> dict[str, int]:
    """Return how large views of a recipe are, by the field that says so."""
    found = {f"augment.views.{name}.size": view.size for name, view in config.augment.views.items()}
    found["data.image_size"] = config.data.image_size
    return {field: size for field, size in found.items() if size is not None}


def _is_whole(place: Path) -> bool:
    return packed_files.is_store(os.fspath(place)) and plans.read(place) is None


def _rename(partial: Path, out: Path) -> None:
    with files.explaining(out):
        partial.rename(out)


def _place(out: str) -> Path:
    """Return the directory to be made.

    Raises:
      UserError: if it cannot be, or is there already and no store.
    """
    if not files.is_local(out):
        raise UserError(f"--out={out} is in a bucket: pack to a disk, and copy the directory there")
    place = Path(files.expand_home(out)).absolute()
    if place.name.endswith(PARTIAL):
        raise UserError(f"--out={out} ends in {PARTIAL}, as what is not whole yet: name another")
    if not packed_files.is_store(out) and (place.is_symlink() or os.path.ismount(place)):
        raise UserError(
            f"--out={out} is a link or a mounted disk, in whose place nothing can be moved in the "
            "end: name a directory inside it"
        )
    if packed_files.is_store(out) or not place.exists():
        if not place.parent.is_dir():
            raise UserError(f"--out={out} cannot be made: there is no directory {place.parent}")
        return place
    if place.is_dir() and not any(place.iterdir()):
        return place
    raise UserError(f"--out={out} is there already, and no packed store: name another")


def _open(
    data: ConfigDict, names: Sequence[str], say: Say
) -> tuple[ConfigDict, dict[str, Source], list[str]]:
    """Open the splits, with labels where they can be used, and return what to say of them.

    A recipe that leaves labels out may have images whose labels cannot be used; for one that wants
    them that is a mistake.
    """
    wanted = data.labels
    data = recipes.copied(data)
    with data.unlocked():
        data.labels = True
        data.image_size = None  # of views, and so of no image here
    try:
        opened, said = _splits(data, names, say), list[str]()
    except Unreachable:
        raise
    except UserError as error:
        if wanted:
            raise
        data.labels = False
        opened, said = _splits(data, names, say), [f"labels are left out: {error}"]
    for source in opened.values():
        said += sources.notes(source)
    return data, opened, [*dict.fromkeys(said)]


def _splits(data: ConfigDict, names: Sequence[str], say: Say) -> dict[str, Source]:
    found = sources.find(data)
    for name in names:
        choose("--splits", name, found)
    # A slice that a recipe asks for has images of a split that is there anyway.
    used = names or [name for name in found if not {"[", "+"} & {*name}]
    opened = {name: found[name]() for name in used}
    for name, source in opened.items():
        if isinstance(source, Records) and source.classes:
            say(f"labels    of {len(source)} records of {name} are read first")
        _ = source.labels  # mistakes in them are found now, not after hours
    return opened


def _labelled(source: Source) -> str:
    return f"{source.classes} classes" if source.classes else "no labels"


def _check_same(out: Path, plan: Plan, data: ConfigDict) -> None:
    """Check that a store that is there is what would be made."""
    store = packed_files.open_store(os.fspath(out))
    for split in store.manifest.splits:
        packed_files.check_files(store, split)
    there = Plan(
        msgspec.structs.replace(store.manifest.law, library=plan.law.library),
        {
            split: plans.Part("", one.images, 0, one.origin)
            for split, one in store.manifest.splits.items()
        },
    )
    remedy = f"name another --out, or remove {documents.shown(out)} to pack anew"
    if said := plans.difference(there, plan):
        raise UserError(f"--out={out} is a packed store already, with {said}: {remedy}")
    _check_unchanged(out, plan, data, remedy)


def _check_unchanged(place: Path, plan: Plan, data: ConfigDict, remedy: str) -> None:
    """Raise `UserError` if files are not those that packing began with, by sizes and times."""
    kept = epath.Path(place / KEPT)
    if not kept.exists():
        return  # images in memory, which fingerprints cover
    found = sources.opener(data)(data, kept)
    for split in plan.splits:
        if said := sources.replaced(found[split](), kept, split, thorough=True):
            raise UserError(f"{said} ({documents.shown(place)}): {remedy}")


def _begin(
    partial: Path,
    plan: Plan,
    data: ConfigDict,
    opened: dict[str, Source],
    stack: closing.Closing,
    size: plans.Size,
    say: Say,
) -> Plan:
    """Take the directory of a store that is being made, and return its plan."""
    before = plans.read(partial)
    remedy = f"give the same again, or remove {documents.shown(partial)} to pack anew"
    if before is None and partial.exists() and _has_others(partial):
        raise UserError(
            f"{documents.shown(partial)} is there, and nothing that can go on: remove it, or name "
            "another --out"
        )
    if before is not None and (said := plans.difference(before, plan)):
        raise UserError(f"{documents.shown(partial)} was begun with {said}: {remedy}")
    done = sum(job.path.stat().st_size for job in (before or plan).jobs(partial) if _is_done(job))
    _check_room(partial.parent, size.total - done, say)
    with files.explaining(partial):
        partial.mkdir(exist_ok=True)
    _lock(partial, stack)
    if before is None:
        sources.remember(epath.Path(partial / KEPT), *opened.values())
        plan.write(partial)
        return plan
    _check_unchanged(partial, before, data, remedy)
    files.sweep(partial)
    say(f"go on     {_bytes(done)} are there from before")
    return before


def _has_others(partial: Path) -> bool:
    """Tell whether a directory has more than one has that was left before there was a plan."""
    names = (path.name for path in partial.iterdir())
    return any(name != KEPT and not files.ASIDE.fullmatch(name) for name in names)


def _is_done(job: Job) -> bool:
    return job.said.exists() and job.path.exists()


def _check_room(directory: Path, needed: int, say: Say) -> None:
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise UserError(
            f"the disk of {documents.shown(directory)} has {_bytes(free)} free, and about "
            f"{_bytes(needed)} are needed: free some, name another --out, lower --side, or give "
            "--format=jpeg"
        )
    say(f"size      about {_bytes(needed)}, of {_bytes(free)} free")


def _lock(partial: Path, stack: closing.Closing) -> None:
    descriptor = os.open(partial, os.O_RDONLY)
    stack.step(os.close, descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(
            f"another process is packing into {documents.shown(partial)}: wait for it"
        ) from None
    except OSError:  # a file system without locks
        return


def _write(
    partial: Path,
    plan: Plan,
    data: ConfigDict,
    opened: dict[str, Source],
    options: Options,
    say: Say,
) -> None:
    """Write all shards that are not there yet."""
    jobs = plan.jobs(partial)
    there = {job: shard for job in jobs if (shard := shards.read(job)) is not None}
    left = [job for job in jobs if job not in there]
    lists = {
        split: Unreadable(
            split,
            len(source),
            data.max_bad_fraction,
            say=say,
            fate="its place stays empty",
        )
        for split, source in opened.items()
    }
    for job, shard in there.items():
        _note(lists[job.split], shard)
    wanted = options.workers or len(os.sched_getaffinity(0))
    count = max(1, min(wanted, len(left)))
    if any(isinstance(source, Images) for source in opened.values()) and count > 1:
        say("note      images that are in memory are packed by one process")
        count = 1
    images = workers.Images(
        recipes.copied(data).to_dict(),
        os.fspath(partial / KEPT),
        {split: part.origin.identity for split, part in plan.splits.items()},
        plan.law,
    )
    said: set[str] = set()
    written = workers.write(left, images, opened, count, say)
    with closing.Closing(written.close):
        for job, shard, lines in written:
            for line in lines:  # each process says once what the first has said before
                if (kind := line.partition("such as")[0]) not in said:
                    said.add(kind)
                    say(line)
            _note(lists[job.split], shard)


def _note(unreadable: Unreadable, shard: Shard) -> None:
    for one in shard.unread:
        unreadable.add(one.image, one.reason)


def _bytes(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
