"""The labels that a run and those it comes from have learned from are counted, and kept few."""

from __future__ import annotations

import numpy as np
import pytest
from stages.lineage import (
    COUNT,
    archive,
    made,
    numbers,
    of,
    recipe,
    student,
)

from simclr_jax import documents, recipes, records
from simclr_jax.data import sources
from simclr_jax.errors import UserError
from simclr_jax.judging import datasets
from simclr_jax.judging.datasets import Wanted
from simclr_jax.stages.prepare import prepare


def few(use="20%", seed=0, **fields):
    return {"labels__use": use, "labels__seed": seed, **fields}


def labelled(ready):
    """Return the numbers of the images whose labels a run reads."""
    train = ready.train
    return numbers(train.take(np.flatnonzero(train.labels >= 0)))


@pytest.fixture
def teacher(tmp_path):
    """An archive, a run fine-tuned on a fifth of its labels, draw 3, and which these are."""
    data = archive(tmp_path / "a.npz", "train")
    made(tmp_path / "pre", recipe("pretrain", data, eval__probe=True))  # which is left there
    ready = made(
        tmp_path / "tuned", recipe("finetune", data, **of(tmp_path / "pre", **few(seed=3)))
    )
    assert str(ready.labels) == f"{len(labelled(ready))}"
    return data, tmp_path / "tuned", labelled(ready)


def refused(config, theirs):
    """Assert that a run is told that its labels are others than those of the run it comes from."""
    alone = recipes.copied(config)
    alone.init.run, alone.distill, alone.stage = "", recipes.base().distill, "finetune"
    mine = labelled(prepare(alone, 1))
    said = (
        rf"{len(mine - theirs)} label\(s\) that are not among the {len(theirs)} of .*tuned, so "
        rf"that there are {len(mine | theirs)} in all: .*labels.use=20% --config.labels.seed=3"
    )
    with pytest.raises(UserError, match=said):
        prepare(config, 1)


@pytest.mark.parametrize("fields", [{"distill__alpha": 0.5}, {"distill__images": "labelled"}])
def test_a_student_has_labels_of_its_teacher_or_says_how_many_more(teacher, fields):
    data, tuned, theirs = teacher
    refused(student(data, tuned, **fields, **few()), theirs)
    for same in (few(seed=3), few("2", 3)):  # all of them, some of them
        ready = prepare(student(data, tuned, **fields, **same), 1)
        assert labelled(ready) <= theirs and str(ready.labels) == f"{len(theirs)}"
    everything = prepare(student(data, tuned, **fields), 1)
    assert str(everything.labels) == "54"
    (line,) = [line for line in everything.about() if line.startswith("labels")]
    assert "54 in all" in line and "54 of this run (all of train" in line
    assert f"{len(theirs)} of {tuned}" in line


def test_a_student_that_reads_no_label_knows_those_of_its_teacher(teacher):
    data, tuned, theirs = teacher
    for fields in ({}, {"data__labels": False}):
        found = prepare(student(data, tuned, **fields), 1).labels
        assert found.protocol == {"labels in all": f"{len(theirs)}"}


def test_the_same_holds_of_a_run_that_starts_from_a_tuned_one(teacher):
    data, tuned, theirs = teacher
    refused(recipe("finetune", data, **of(tuned, **few("10%"))), theirs)
    more = prepare(recipe("finetune", data, **of(tuned, **few("50%", 3))), 1)
    assert labelled(more) > theirs and str(more.labels) == f"{len(labelled(more))}"


def test_labels_of_a_probe_count_where_it_is_taken_over(teacher):
    data, tuned, _ = teacher
    pre = tuned.parent / "pre"
    for parts, total in (("encoder", 11), ("encoder,probe", 54)):
        config = recipe("finetune", data, **of(pre, init__parts=parts, **few(seed=3)))
        assert prepare(config, 1).labels.total == total
    assert prepare(student(data, pre), 1).labels.total == 54


def test_labels_that_images_do_not_have_are_not_counted(tmp_path):
    data = archive(tmp_path / "a.npz", "train", "test")
    arrays = dict(np.load(data))
    arrays["train_labels"][9:] = sources.NO_LABEL
    np.savez(data, **arrays)
    made(tmp_path / "pre", recipe("pretrain", data, eval__probe=True))
    other = archive(tmp_path / "b.npz", "train", first=2 * COUNT)
    for images in (data, other):
        found = prepare(student(images, tmp_path / "pre"), 1).labels
        assert str(found) == "9" and f" 9 of {tmp_path / 'pre'}" in found.line


def test_labels_of_other_images_are_counted_at_most(teacher, tmp_path):
    _, tuned, theirs = teacher
    other = archive(tmp_path / "b.npz", "train", first=COUNT)
    config = student(other, tuned, distill__alpha=0.5, **few())
    ready = prepare(config, 1)
    assert str(ready.labels) == f"at most {len(theirs) + len(labelled(ready))}"


def test_a_probe_says_that_the_encoder_has_seen_other_labels(teacher):
    _, tuned, theirs = teacher
    config = records.recipe(documents.read(tuned / "config.json", dict))
    opened = datasets.open_data(config, tuned, Wanted())
    assert datasets.labels_of_encoder(opened) == len(theirs)
    fit = [next(iter(numbers(opened.fit.take(np.array([i]))))) for i in range(len(opened.fit))]
    same = np.flatnonzero(np.isin(fit, [*theirs]))
    assert datasets.labels_in_all(opened, same) == ""
    others = np.flatnonzero(~np.isin(fit, [*theirs]))[:5]
    said = datasets.labels_in_all(opened, others)
    assert f"probe has 5 labels, and the encoder has learned from {len(theirs)}" in said
    assert said.endswith(f"there are {len(theirs) + 5} in all")
