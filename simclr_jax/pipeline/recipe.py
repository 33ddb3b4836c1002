"""Recipes of several runs, of which later ones start from or learn from earlier ones.

A pipeline's recipe holds whole recipes, each under the name of its run; their `init.run` and
`distill.teacher` may be the name of an earlier run. `pipeline.run` carries it out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from simclr_jax import recipes, records
from simclr_jax.errors import UserError, choose, nearest
from simclr_jax.fields import LABELLED

STAGE = "pipeline"
FIELDS = ("stage", "seed", "runs", "probes", "order", "table", "differences")
PROBE = {"run": str, "tap": str, "labels": str, "seed": int}
NAME = re.compile(r"\w+")  # of a directory, and of a field on the command line
TAKEN = ("results",)  # in the directory of a pipeline
POINTERS = ("init.run", "distill.teacher")  # fields that may name an earlier run

# What a run on labels has from the pretraining it is compared with. Views come apart.
SHARED: dict[str, tuple[str, ...]] = {
    "data": tuple(name for name in recipes.base().data if name != "labels"),
    "augment": tuple(name for name in recipes.base().augment if name != "views"),
    "model": tuple(recipes.base().model),
    "bn": tuple(recipes.base().bn),
    "head": tuple(recipes.base().head),
    "train": ("dtype",),
    "log": tuple(recipes.base().log),
    "checkpoint": tuple(recipes.base().checkpoint),
}


class Kind(NamedTuple):
    """One kind of run on labels: there is one run of it for each share and draw.

    Attributes:
      row: of the table.
      model: the pretraining whose images and model it has, `SMALL` or `LARGE`.
      start: begin with the weights of that pretraining.
      tap: which layer of the head the classifier reads.
      rates: what it learns by, a name of the argument `fields` of `simclr_v2`.
      coloured: augment as in pretraining, not by crop and flip alone.
      learns_on: of a student, `distill.images`; "" without a teacher.
      labels: of a student: they take part beside the teacher.
    """

    row: str
    model: str
    start: bool = False
    tap: int = 0
    rates: str = "finetune"
    coloured: bool = False
    learns_on: str = ""
    labels: bool = False

    @property
    def reads_labels(self) -> bool:
        """Tell whether labels decide anything here but through a teacher."""
        return self.labels or not self.learns_on

    @property
    def needs_teacher(self) -> bool:
        """Tell whether it is the teacher, or taught by it."""
        return self.model == LARGE or bool(self.learns_on)


SMALL, LARGE = "pretrain", "pretrain_teacher"
SCRATCH, LABEL_ONLY, PROBED = "supervised from scratch", "label only", "linear probe"
TAP0, TAP1, TEACHER = "fine-tuned, tap 0", "fine-tuned, tap 1", "teacher, fine-tuned, tap 1"
COLOURED = "supervised, SimCLR's augmentation"
ON_LABELLED, ON_ALL = "label + distil, labelled images", "label + distil, all images"
DISTIL_ONLY = "distil only, all images"
ROWS = (
    SCRATCH,
    COLOURED,
    PROBED,
    TAP0,
    TAP1,
    TEACHER,
    LABEL_ONLY,
    ON_LABELLED,
    ON_ALL,
    DISTIL_ONLY,
)

# A teacher is trained before its students.
KINDS: dict[str, Kind] = {
    "scratch": Kind(SCRATCH, SMALL, rates="scratch"),
    "coloured": Kind(COLOURED, SMALL, rates="scratch", coloured=True),
    "tap0": Kind(TAP0, SMALL, start=True),
    "tap1": Kind(TAP1, SMALL, start=True, tap=1),
    "teacher": Kind(TEACHER, LARGE, start=True, tap=1),
    "both_few": Kind(
        ON_LABELLED, SMALL, rates="distill_labelled", learns_on="labelled", labels=True
    ),
    "both": Kind(ON_ALL, SMALL, rates="distill", learns_on="all", labels=True),
    "distilled": Kind(DISTIL_ONLY, SMALL, rates="distill", learns_on="all"),
}
DIFFERENCES = (
    (COLOURED, SCRATCH),
    (TAP1, SCRATCH),
    (TAP1, PROBED),
    (TAP1, TAP0),
    (ON_LABELLED, LABEL_ONLY),
    (ON_ALL, ON_LABELLED),
    (DISTIL_ONLY, ON_ALL),
    (DISTIL_ONLY, TAP1),
    (DISTIL_ONLY, TEACHER),
)


def simclr_v2(
    teacher_pretrain: ConfigDict | None,
    student_pretrain: ConfigDict,
    *,
    fields: Mapping[str, Mapping[str, Any]],
    shares: tuple[str, ...] = ("1%", "10%"),
    draws: int = 3,
    alpha: float = 0.5,
    seed: int = 0,
) -> ConfigDict:
    """Return the recipe that compares what few labels are worth, with and without SimCLRv2.

    Its rows are `KINDS`, the linear probe, and the four of the paper's table 2 (arXiv 2006.10029).
    All of a share and draw have the same labels. When fields are changed on the command line, what
    belongs to the pretraining recipes, such as the model, follows them, and further draws follow
    the first.

    Args:
      teacher_pretrain, student_pretrain: the recipes; the images are those of the student. Without
        a teacher, None, the rows that need one are left out.
      fields: by `Kind.rates`, dotted fields of its runs, each a value or a value for each share.
      shares: of the labels, see `labels.use`.
      draws: of labels, for each share.
      alpha: weight of the teacher where labels take part too.
      seed: of all runs; draws of labels are counted from 0.

    Raises:
      UserError: if there is nothing to draw.
    """
    if draws < 1:
        raise UserError(f"draws is {draws}: it must be 1 or more")
    c = ConfigDict({"stage": STAGE, "seed": seed, "probes": {}, "differences": DIFFERENCES})
    c.runs, kinds = ConfigDict({SMALL: student_pretrain}), KINDS
    if teacher_pretrain is None:
        kinds = {name: kind for name, kind in KINDS.items() if not kind.needs_teacher}
        rows = {SCRATCH, PROBED, *(kind.row for kind in kinds.values())}
        c.differences = tuple(pair for pair in DIFFERENCES if set(pair) <= rows)
    else:
        c.runs[LARGE] = teacher_pretrain
        _follow(c.runs[LARGE], c.runs[SMALL], {"data": tuple(recipes.base().data)})
    table = []
    for share in shares:
        for kind, about in kinds.items():
            first = _labelled(about, c.runs[about.model], share, alpha, fields)
            for draw in range(draws):
                recipe = c.runs[_name(kind, share, draw)] = _following(first) if draw else first
                if about.reads_labels:
                    recipe.labels.seed = draw
                if about.learns_on:
                    recipe.distill.teacher = _name("teacher", share, draw)
                table.append((about.row, share, _name(kind, share, draw)))
        for draw in range(draws):
            name = _name("probe", share, draw)
            c.probes[name] = ConfigDict({"run": SMALL, "tap": "h", "labels": share, "seed": draw})
            table.append((PROBED, share, name))
            if teacher_pretrain is not None:
                table.append((LABEL_ONLY, share, _name("scratch", share, draw)))
    for name in c.runs:
        c.runs[name].seed = c.get_oneway_ref("seed")
    c.table = tuple(sorted(table, key=lambda entry: ROWS.index(entry[0])))
    cells = [(share, draw) for share in shares for draw in range(draws)]
    pretrained = [name for name in (SMALL, LARGE) if name in c.runs]
    c.order = (*pretrained, *(_name(kind, *cell) for cell in cells for kind in kinds))
    return c.lock()


def _labelled(
    kind: Kind,
    pretrain: ConfigDict,
    share: str,
    alpha: float,
    fields: Mapping[str, Mapping[str, Any]],
) -> ConfigDict:
    """Return the recipe of a run on labels, all of it but which draw of the labels it has."""
    c = recipes.base()
    c.stage = "distill" if kind.learns_on else "finetune"
    _follow(c, pretrain, SHARED)
    recipes.crop_and_flip(c)
    (view,) = c.augment.views.values()
    first = pretrain.augment.views[min(pretrain.augment.views)]
    for field in first if kind.coloured else recipes.INHERITED_CROP:
        view[field] = first.get_oneway_ref(field)
    c.finetune.tap = kind.tap
    if kind.start:
        c.init.run = kind.model
    if kind.learns_on:
        c.distill.images = kind.learns_on
        c.distill.alpha = alpha if kind.labels else 1.0
    if kind.reads_labels:
        c.labels.use = share
    c.eval.probe, c.eval.knn = False, False
    c.eval.every_epochs = 0.0  # an epoch of few images is a step or two: at the end alone
    for field, value in fields[kind.rates].items():
        value = value[share] if isinstance(value, Mapping) else value
        recipes.put(c, field, value)
    return c


def _follow(c: ConfigDict, other: ConfigDict, shared: Mapping[str, tuple[str, ...]]) -> None:
    """Let fields of `c` be what they are in `other`, now and after any change there."""
    for group, fields in shared.items():
        for field in fields:
            c[group][field] = other[group].get_oneway_ref(field)


def _following(other: ConfigDict) -> ConfigDict:
    """Return a recipe every field of which follows that of `other`."""
    c = ConfigDict()
    for name in other:
        nested = isinstance(other[name], ConfigDict)
        c[name] = _following(other[name]) if nested else other.get_oneway_ref(name)
    return c


def _name(kind: str, share: str, draw: int) -> str:
    return f"{kind}_{re.sub(r'[^0-9A-Za-z]', '_', share.replace('%', 'pct'))}_{draw}"


def check(c: ConfigDict) -> None:
    """Check that every name in the recipe of a pipeline stands for something.

    Raises:
      UserError: naming the first that does not.
    """
    for field in c:
        if field not in FIELDS:
            raise UserError(f'pipeline has no field "{field}"{nearest(field, FIELDS)}: remove it')
    for field in FIELDS:
        if field not in c:
            raise UserError(
                f'pipeline lacks "{field}": see simclr_jax/pipeline/recipe.py for its fields'
            )
    names = [*c.runs, *c.probes]
    for name in names:
        if not NAME.fullmatch(name) or name in TAKEN or names.count(name) > 1:
            raise UserError(
                f'pipeline has a run or probe "{name}": use letters, digits and _, not '
                f"{', '.join(TAKEN)}, and no name twice"
            )
    _check_order(c)
    for name, probe in c.probes.items():
        if {*probe} != {*PROBE}:
            raise UserError(
                f"probes.{name} has {', '.join(probe)}: it must have {', '.join(PROBE)}"
            )
        for field, kind in PROBE.items():
            if type(probe[field]) is not kind:
                raise UserError(
                    f"probes.{name}.{field} is {probe[field]}: it must be {records.KINDS[kind]}"
                )
        choose(f"probes.{name}.run", probe.run, c.runs)
        if not 0 <= probe.seed < 2**32:
            raise UserError(f"probes.{name}.seed is {probe.seed}: it must be in [0, 2^32)")
    _check_table(c)


def draw(c: ConfigDict, name: str) -> int:
    """Return which draw of labels a run or a probe of a pipeline has, or a student's teacher."""
    if name in c.probes:
        return c.probes[name].seed
    run = c.runs[name]
    d = run.distill
    reads_none = run.stage == "distill" and d.alpha == 1 and d.images == "all"
    return draw(c, d.teacher) if reads_none and d.teacher in c.runs else run.labels.seed


def _check_order(c: ConfigDict) -> None:
    """Check that each run comes once, and after those it needs."""
    for name in c.order:
        choose("order names a run that", name, c.runs)
    for name in c.runs:
        if (times := list(c.order).count(name)) != 1:
            raise UserError(f"order has {name} {times} times: name each run once")
    for place, name in enumerate(c.order):
        for pointer in POINTERS:
            if (to := recipes.get(c.runs[name], pointer)) in c.order[place:]:
                raise UserError(
                    f"runs.{name}.{pointer} is {to}, which does not come before it in order: put "
                    f"{to} first"
                )


def _check_table(c: ConfigDict) -> None:
    seen: dict[tuple[str, str, int], str] = {}
    for row, column, name in c.table:
        where = f'table, row "{row}", column "{column}"'
        choose(f"{where}: the run or probe", name, [*c.runs, *c.probes])
        if name in c.runs:
            if c.runs[name].stage not in LABELLED:
                raise UserError(
                    f"{where}: runs.{name} has stage {c.runs[name].stage} and so no accuracy: name "
                    "a probe of it"
                )
            if not c.runs[name].eval.compare:
                raise UserError(f"runs.{name}.eval.compare is False, but the table needs it: True")
        cell = (row, column, draw(c, name))
        if cell in seen:
            raise UserError(
                f"{where}: {seen[cell]} and {name} both have draw {cell[2]} of labels: name one"
            )
        seen[cell] = name
    for pair in c.differences:
        for row in pair:
            choose("differences: the row", row, dict.fromkeys(entry[0] for entry in c.table))
