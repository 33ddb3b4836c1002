"""How well an encoder transfers: linear evaluation on other data sets, beside published results."""

from __future__ import annotations

import dataclasses
import functools
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from simclr_jax import tables
from simclr_jax.data.sources import Unseen, trained
from simclr_jax.errors import UserError, choose
from simclr_jax.evaluate import chance
from simclr_jax.judging import datasets, linear_probe, naming, results, shown, transfer_sets
from simclr_jax.judging.datasets import Data, Wanted
from simclr_jax.judging.feature_bank import Say, cache_of
from simclr_jax.judging.linear_probe import Options
from simclr_jax.judging.shown import Scored
from simclr_jax.judging.solvers import Settings
from simclr_jax.judging.transfer_sets import NAMES, SEEDED, SETS, TransferSet
from simclr_jax.stages import heritage
from simclr_jax.stages.encoder import Encoder
from simclr_jax.train import saved

REMEDY = "leave it out, or score it all the same by --seen"


@dataclasses.dataclass(frozen=True)
class Target:
    """A data set to transfer to, opened.

    Attributes:
      data: its splits.
      metric: by which the penalty is chosen, and which is compared; "": the solver's own choice.
      published: scores of others on it, fractions, by method.
      notes: what a reader of the result must know.
      beyond: what tells the data from others of the name, see `naming.of_data`.
      recipe: `config.data` of it, as far as a recipe can say which images these are.
    """

    data: Data
    metric: str = ""
    published: Mapping[str, float] = dataclasses.field(default_factory=dict)
    notes: Sequence[str] = ()
    beyond: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    recipe: ConfigDict | None = None


def run(
    checkpoint: str,
    data_dir: str = "",
    sets: Sequence[str] = NAMES,
    others: Sequence[str] = (),
    cache: str = "",
    seed: int = 0,
    max_bad_fraction: float | None = None,
    seen: bool = False,
    say: Say = print,
    weights: str = saved.TRAINED,
) -> None:
    """Evaluate a frozen encoder on data sets, write `results/transfer-NAME.json`, print a table.

    Args:
      checkpoint: a workdir, or `WORKDIR@STEP`.
      data_dir: where the data sets lie, see `transfer_sets.open_set`.
      sets: which of the protocol's, by name.
      others: further ones, as `given_data.KINDS` has them.
      cache: where features are kept, see `linear_probe.Options`.
      seed: of the intervals, and of the validation images of `others`.
      max_bad_fraction: of unreadable images in a split; None is that of the run's recipe.
      seen: see `datasets.Wanted`.
      say: receives each line.
      weights: which of the checkpoint's, one of `saved.WEIGHTS`.

    Raises:
      UserError: for an unknown name, or if none of the data sets could be evaluated.
    """
    for name in sets:
        choose("--sets", name, NAMES)
    read = saved.of_weights(saved.read(checkpoint), weights)
    fields = {} if max_bad_fraction is None else {"data.max_bad_fraction": max_bad_fraction}
    encoder = Encoder.of(read)
    encoder = encoder.changed(fields, transfer_sets.whole_image(encoder.preprocessing))
    p = encoder.preprocessing
    say(f"run       {encoder.run}")
    say(f"images    short side to {p.size} pixels (grid {p.grid}), central crop, no augmentation")
    say("note      linear evaluation; --protocol=finetune is the protocol's other half")
    targets, left_out = open_targets(read, data_dir, sets, others, seen, say)
    kept = cache_of(read.workdir, cache)
    tail = naming.of_weights(read, checkpoint)
    judge = functools.partial(_judge, encoder, read.workdir, kept, seed, tail, say)
    work = {name: functools.partial(judge, name, target) for name, target in targets.items()}
    found, failed = attempt(work, say)
    check_some(found, left_out | failed)
    for line in shown.table([*found.values()]):
        say(line)
    for line in shown.by_chance([*found.values()]):
        say(f"note      {line}")
    for line in beside_published(found, targets):
        say(line)
    names = ", ".join(f"{one.result['name']}.json" for one in found.values())
    say(f"written   {read.workdir}/results: {names}")


def open_targets(
    read: saved.Saved,
    data_dir: str,
    sets: Sequence[str],
    others: Sequence[str],
    seen: bool,
    say: Say,
) -> tuple[dict[str, Target], dict[str, str]]:
    """Open data sets, see `run`; return them, and why others could not be, both by name."""
    unseen = Unseen(heritage.of_record(read.record, read.workdir), REMEDY, seen)
    ways: dict[str, Callable[[], Target]] = {
        one.name: functools.partial(_open, one, data_dir, unseen)
        for one in SETS
        if one.name in sets
    }
    for data in others:
        other = _open_other(read, data, data_dir, seen)
        name = f"{other.data.slug}-{naming.tag(other.beyond)}"  # others may be called so, too
        ways[name] = functools.partial(_same, other)
    return attempt(ways, say)


def check_some(found: Mapping[str, Any], failed: Mapping[str, str]) -> None:
    """Raise `UserError` if none of the data sets could be evaluated."""
    if not found:
        name, why = next(iter(failed.items()))
        raise UserError(f"none of {len(failed)} data set(s) could be evaluated; {name}: {why}")


def _open(one: TransferSet, data_dir: str, unseen: Unseen) -> Target:
    opened = transfer_sets.open_set(one, data_dir)
    said = trained.check(opened.test, f"{one.title}, {one.test}", unseen)
    names = ("train", f"validation, {one.rule}", one.test)
    if one.rule == SEEDED:
        names = ("25 of each class", "5 of each class", "the rest")
    splits = dict(zip(("fit", "choose", "score"), names, strict=True))
    data = Data(one.title, one.name, splits, opened.train, opened.validation, opened.test)
    notes, recipe = (*opened.notes, *said), transfer_sets.recipe_data(one, data_dir)
    return Target(data, one.metric, transfer_sets.published(one), notes, recipe=recipe)


def _open_other(read: saved.Saved, data: str, data_dir: str, seen: bool) -> Target:
    wanted = Wanted(data, data_dir if data.startswith("tfds:") else "", seen=seen)
    opened = datasets.open_data(read.config, read.workdir, wanted)
    beyond, recipe = naming.of_data(wanted, opened), datasets.recipe_data(read.config, wanted)
    return Target(opened, notes=opened.notes, beyond=beyond, recipe=recipe)


def _same(target: Target) -> Target:
    return target


def attempt(
    ways: Mapping[str, Callable[[], Any]], say: Say
) -> tuple[dict[str, Any], dict[str, str]]:
    """Call each way; return the results, and for those that failed the reason, which is printed."""
    found, failed = {}, {}
    for name, way in ways.items():
        try:
            found[name] = way()
        except UserError as error:
            failed[name] = str(error)
            say(f"left out  {name}: {error}")
    return found, failed


def _judge(
    encoder: Encoder,
    workdir: epath.Path,
    cache: epath.Path | None,
    seed: int,
    tail: str,
    say: Say,
    name: str,
    target: Target,
) -> Scored:
    """Evaluate one data set and write its result."""
    data = target.data
    counts = " + ".join(str(len(part)) for part in (data.fit, data.choose, data.score) if part)
    say(f"data      {data.name}: {counts} images, {data.fit.classes} classes")
    for note in target.notes:
        say(f"note      {note}")
    options = Options(settings=Settings(seed=seed), metric=target.metric)
    tasks = linear_probe.make_tasks(encoder, data, options, cache, say)
    (one,) = linear_probe.judge(encoder, data, tasks, options, say=say)
    about = {
        "name": naming.name(f"transfer-{name}", seed=seed, tail=tail),
        "metric": tasks[0].metric,
        "published": dict(target.published),
        "notes": [*target.notes, *one.result.get("notes", ())],
    }
    result = one.result | about
    for line in naming.set_aside(workdir, result):
        say(f"note      {line}")
    results.write(workdir, result, one.arrays)
    return dataclasses.replace(one, result=result)


def beside_published(
    found: Mapping[str, Scored], targets: Mapping[str, Target], how: str = "linear evaluation"
) -> list[str]:
    """Show our scores among the published rows, with every row's mean rank."""
    ours, scores = "this encoder", {}
    for name, one in found.items():
        if targets[name].published:
            own = one.result["scores"][targets[name].metric]["value"]
            scores[name] = {ours: own, **targets[name].published}
    if not scores:
        return []
    ranks = transfer_sets.mean_ranks(scores)
    rows = [
        (method, *(f"{100 * scores[name][method]:.1f}" for name in scores), f"{rank:.1f}")
        for method, rank in ranks.items()
    ]
    guesses = [
        found[name].result["level"]["scores"][targets[name].metric]["value"] for name in scores
    ]
    rows.append((chance.COMMONEST, *(f"{100 * guess:.1f}" for guess in guesses), "-"))
    used = dict.fromkeys(targets[name].metric for name in scores)
    metrics = [
        textwrap.fill(
            f"{metric} on {', '.join(name for name in scores if targets[name].metric == metric)}",
            tables.WIDTH,
            subsequent_indent="  ",
        )
        for metric in used
    ]
    places: dict[str, list[str]] = {}
    for method in list(ranks)[1:]:
        places.setdefault(transfer_sets.SOURCES[method], []).append(method)
    header = [f"{name}*" if targets[name].notes else name for name in scores]
    return [
        tables.table((f"{how}, %", *header, "mean rank"), rows),
        *metrics,
        *(["* not as published: see its notes"] if any(h.endswith("*") for h in header) else []),
        "published: ResNet-50 (4x: four times as wide), from ImageNet at 224 pixels",
        *(
            textwrap.fill(
                f"  {', '.join(methods)}: {place}", tables.WIDTH, subsequent_indent="    "
            )
            for place, methods in places.items()
        ),
        "",
    ]
