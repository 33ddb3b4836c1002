"""The recipe that compares what few labels are worth: which run stands in which cell, by what."""

from __future__ import annotations

import functools

import pytest
from train import tiny

from simclr_jax.errors import UserError
from simclr_jax.pipeline import recipe
from simclr_jax.reporting.record import flatten

SHARES = {"1%": "1pct", "10%": "10pct"}
RATES = {"finetune": 0.11, "scratch": 0.22, "distill": 0.33, "distill_labelled": 0.44}
FIELDS = {name: {"optim.base_lr": {"1%": x, "10%": 10 * x}} for name, x in RATES.items()}

# Of each row, from top to bottom: the runs or probes of it, by the beginning of their names.
TABLE = {
    "supervised from scratch": "scratch",
    "supervised, SimCLR's augmentation": "coloured",
    "linear probe": "probe",
    "fine-tuned, tap 0": "tap0",
    "fine-tuned, tap 1": "tap1",
    "teacher, fine-tuned, tap 1": "teacher",
    "label only": "scratch",
    "label + distil, labelled images": "both_few",
    "label + distil, all images": "both",
    "distil only, all images": "distilled",
}
# start from, tap, teacher's images, alpha, labels used, rates
RUNS = {
    "scratch": ("", 0, None, None, True, "scratch"),
    "coloured": ("", 0, None, None, True, "scratch"),
    "tap0": ("pretrain", 0, None, None, True, "finetune"),
    "tap1": ("pretrain", 1, None, None, True, "finetune"),
    "teacher": ("pretrain_teacher", 1, None, None, True, "finetune"),
    "both_few": ("", 0, "labelled", 0.3, True, "distill_labelled"),
    "both": ("", 0, "all", 0.3, True, "distill"),
    "distilled": ("", 0, "all", 1.0, False, "distill"),
}
NEEDING_A_TEACHER = {"teacher", "both_few", "both", "distilled"}


@functools.cache
def made(teacher=True, draws=2):
    large = tiny.recipe(model__width=1 / 8) if teacher else None
    shares = tuple(SHARES)
    return recipe.simclr_v2(
        large, tiny.recipe(), fields=FIELDS, shares=shares, draws=draws, alpha=0.3, seed=3
    )


def cells():
    return [(share, short, draw) for share, short in SHARES.items() for draw in range(2)]


def test_each_cell_has_its_own_runs_in_the_order_of_the_rows():
    want = [
        (row, share, f"{kind}_{short}_{draw}")
        for row, kind in TABLE.items()
        for share, short, draw in cells()
    ]
    found = list(made().table)
    assert sorted(found) == sorted(want)
    assert list(dict.fromkeys(row for row, _, _ in found)) == list(TABLE)


@pytest.mark.parametrize("kind", RUNS)
def test_each_run_is_what_its_row_says(kind):
    c = made()
    start, tap, images, alpha, labelled, rates = RUNS[kind]
    for share, short, draw in cells():
        run = c.runs[f"{kind}_{short}_{draw}"]
        assert run.stage == ("distill" if images else "finetune")
        assert (run.init.run, run.finetune.tap, run.seed) == (start, tap, 3)
        if images:
            assert run.distill.teacher == f"teacher_{short}_{draw}"
            assert (run.distill.images, run.distill.alpha) == (images, alpha)
        assert run.labels.use == (share if labelled else "all")
        assert run.labels.seed == (draw if labelled else 0)
        assert recipe.draw(c, f"{kind}_{short}_{draw}") == draw
        assert run.optim.base_lr == pytest.approx(RATES[rates] * (10 if share == "10%" else 1))
        assert run.model.width == (1 / 8 if kind == "teacher" else 1 / 16)
        jitter = {view.jitter for view in run.augment.views.values()}
        assert jitter == {0.8 if kind == "coloured" else 0.0}
        assert (run.eval.probe, run.eval.knn, run.eval.every_epochs) == (False, False, 0.0)


def test_probes_are_of_the_students_pretraining_with_the_labels_of_their_cell():
    c = made()
    assert {name: dict(probe) for name, probe in c.probes.items()} == {
        f"probe_{short}_{draw}": {"run": "pretrain", "tap": "h", "labels": share, "seed": draw}
        for share, short, draw in cells()
    }


def test_a_teacher_comes_before_its_students_and_pretraining_before_all():
    order = list(made().order)
    assert order[:2] == ["pretrain", "pretrain_teacher"] and len(order) == 2 + 4 * len(RUNS)
    assert set(order) == set(made().runs)
    for name in order:
        run = made().runs[name]
        for before in (run.init.run, run.distill.teacher):
            assert not before or order.index(before) < order.index(name)


DIFFERENCES = [
    ("supervised, SimCLR's augmentation", "supervised from scratch"),
    ("fine-tuned, tap 1", "supervised from scratch"),
    ("fine-tuned, tap 1", "linear probe"),
    ("fine-tuned, tap 1", "fine-tuned, tap 0"),
    ("label + distil, labelled images", "label only"),
    ("label + distil, all images", "label + distil, labelled images"),
    ("distil only, all images", "label + distil, all images"),
    ("distil only, all images", "fine-tuned, tap 1"),
    ("distil only, all images", "teacher, fine-tuned, tap 1"),
]


def test_differences_are_those_of_the_paper_s_questions():
    assert list(map(tuple, made().differences)) == DIFFERENCES
    assert list(map(tuple, made(teacher=False).differences)) == DIFFERENCES[:4]


def test_without_a_teacher_the_rows_that_need_one_are_left_out():
    c = made(teacher=False)
    kinds = set(RUNS) - NEEDING_A_TEACHER
    assert set(c.runs) == {"pretrain"} | {f"{k}_{s}_{d}" for k in kinds for _, s, d in cells()}
    assert {row for row, _, _ in c.table} == {
        row for row, kind in TABLE.items() if kind not in NEEDING_A_TEACHER and row != "label only"
    }


@pytest.mark.parametrize("draws", [1, 3])
def test_there_are_as_many_draws_as_are_asked_for(draws):
    names = [name for row, share, name in made(draws=draws).table if row.startswith("linear")]
    assert sorted(names) == sorted(f"probe_{s}_{d}" for s in SHARES.values() for d in range(draws))


def test_no_draws_are_refused():
    with pytest.raises(UserError, match="draws is 0: it must be 1 or more"):
        made(draws=0)


# What must be as in the pretraining, or a run on labels is not comparable with it.
SAME = {"data", "augment", "model", "bn", "head", "log", "checkpoint"}


def another(value):
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return f"{value}x"
    return value + 1 if isinstance(value, int) else value / 2 + 0.01


def leaves(c):
    """Return the fields of a recipe that have a value, but for views, which come apart."""
    return {
        name: value
        for name, value in flatten(c.to_dict()).items()
        if not name.startswith("augment.views") and isinstance(value, bool | str | int | float)
    }


@pytest.mark.parametrize("kind", [kind for kind in RUNS if kind != "teacher"])
def test_a_run_on_labels_has_images_model_and_normalisation_of_the_pretraining(kind):
    """By the last value that the pretraining was given, and nothing else of it."""
    c = made.__wrapped__()  # a new one, to be changed
    run = c.runs[f"{kind}_1pct_0"]
    pretrain, before = c.runs.pretrain, leaves(run)
    wanted = {}
    for name, value in leaves(pretrain).items():
        section = name.partition(".")[0]
        same = section in SAME or name == "train.dtype"
        if name in ("data.labels", "seed", "stage", "method"):  # its own, or of the whole pipeline
            continue
        wanted[name] = another(value) if same else before.get(name)
        with pretrain.unlocked():
            pretrain.update_from_flattened_dict({name: another(value)})
    after = leaves(run)
    different = {
        name: (after[name], value) for name, value in wanted.items() if after.get(name) != value
    }
    assert not different
    assert sum(name.startswith("bn.") for name in wanted) >= 4
