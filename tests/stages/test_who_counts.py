"""Images without a label neither teach a score nor count in it, and that is said beforehand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from stages import taught
from train import tiny

from simclr_jax.data import sources
from simclr_jax.data.sources import NO_LABEL, Images
from simclr_jax.errors import UserError
from simclr_jax.evaluate import chance
from simclr_jax.stages import scored
from simclr_jax.stages.prepare import prepare
from simclr_jax.unlabelled import counted


@pytest.mark.parametrize(
    "labels, readable, rows",
    [
        (None, None, []),
        ([0, -1, 2, 0], None, [0, 2, 3]),
        ([0, -1, 2, 0], [1, 2, 3], [2, 3]),
        ([-1, -1], None, []),
        ([[0, 1], [-1, -1], [-1, 0], [0, 0]], None, [0, 2, 3]),
        ([[0, 1], [-1, -1], [-1, 0], [0, 0]], [0, 1], [0]),
    ],
)
def test_who_counts(labels, readable, rows):
    given = None if labels is None else np.array(labels, np.int8)
    found = counted(given, None if readable is None else np.array(readable))
    np.testing.assert_array_equal(found, rows)


def with_labels(count, labels):
    images = tiny.sorted_images().take(np.arange(count))
    classes = int(np.max(labels, initial=0)) + 1
    return dataclasses.replace(images, labels=np.resize(labels, count).astype(np.int32),
                               classes=classes)  # fmt: skip


def ready(c, train, test):
    opened = sources.Opened(train, test, train)
    return prepare(c, 1, open_all=lambda *_, **__: opened)


HALF = [0, NO_LABEL, 1, 2]  # a quarter has no label


def test_how_many_have_no_label_is_said_before_the_work():
    c = tiny.recipe(eval__knn_k=5)
    said = "\n".join(ready(c, with_labels(48, HALF), with_labels(20, HALF)).about())
    assert "5 of 20 held-out images have no label: they are not scored" in said
    assert "12 of 48 training images have no label: they teach the encoder, but no probe" in said
    c = taught.recipe()
    said = "\n".join(ready(c, with_labels(48, HALF), with_labels(20, HALF)).about())
    assert "36 to learn from" in said and "12 of 48 training images have no label: they are" in said
    said = "\n".join(ready(c, with_labels(48, [0, 1]), with_labels(20, [0, 1])).about())
    assert "note" not in said


@pytest.mark.parametrize("train, test, which", [(HALF, [-1], "20 held-out"), ([-1], HALF, "48 tr")])
def test_nothing_to_score_is_an_error_before_the_work(train, test, which):
    given = with_labels(48, train), with_labels(20, test)
    given = [dataclasses.replace(source, classes=3) for source in given]
    with pytest.raises(UserError, match=rf"none of the {which}.* has a label.*eval.knn=False"):
        ready(tiny.recipe(), *given)
    for field in ("eval__probe", "eval__knn"):  # each of the two alone
        with pytest.raises(UserError, match=f"which {field.replace('__', '.')} needs"):
            other = "eval__knn" if field == "eval__probe" else "eval__probe"
            ready(tiny.recipe(**{other: False}), *given)
    c = tiny.recipe(eval__probe=False, eval__knn=False)
    assert ready(c, *given).config.eval.compare  # there is nothing to compare, and no need to
    c.eval.probe = c.eval.knn = None
    with c.unlocked():
        chosen = ready(c, *given)
    assert (chosen.config.eval.probe, chosen.config.eval.knn) == (False, False)
    assert any(which in line for line in chosen.chosen)


def test_images_that_cannot_be_read_may_be_all_that_have_a_label():
    source = with_labels(4, [0, NO_LABEL, 1, NO_LABEL])
    found = scored.scored(source, np.array([1, 2]))
    assert (found.rows.tolist(), found.labels.tolist()) == ([2], [1])
    assert found.about("test") == {
        "test_images": 1, "test_without_label": 2, "test_unreadable": 1}  # fmt: skip
    with pytest.raises(
        UserError, match=r"none of 4 images \(image 0, \.\.\.\) can be read and has"
    ):
        scored.scored(source, np.array([1, 3]))


@pytest.mark.parametrize(
    "k, labels, said",
    [
        (12, [0, 1], ()),
        (25, [0, 1], ("more than the 24 image(s) of the smallest class",)),
        (13, [0, 0, 0, 1], ("eval.knn_k is 13, more than the 12 image(s)", "knn_k=6 or less")),
        (
            48,
            [0, NO_LABEL],
            ("but only 24 images have a label to vote with: k is 24",),
        ),
    ],
)
def test_a_vote_of_more_images_than_a_class_has_is_said(k, labels, said):
    c = tiny.recipe(eval__knn_k=k)
    found = "\n".join(scored.notes(c, with_labels(48, labels), with_labels(20, [0, 1])))
    assert all(words in found for words in said)
    assert bool(said) == ("knn_k" in found)


def test_one_class_says_nothing():
    train, test = with_labels(48, [0, 1]), with_labels(20, [1])
    assert scored.ONE_CLASS in list(scored.notes(tiny.recipe(), train, test))
    assert scored.ONE_CLASS not in list(scored.notes(tiny.recipe(), train, train))
    with pytest.raises(UserError, match="all labelled training images are of one class"):
        ready(taught.recipe(), test, train)


# The commonest class ------------------------------------------------------------------------------


def test_who_guesses_the_commonest_class_breaks_ties_as_it_pays():
    guess = chance.outputs(np.array([0, 1, 1, 2, 2]), np.array([2, 2, 0, 1]), 4)
    assert guess.shape == (4, 4) and (guess.argmax(1) == 2).all()
    guess = chance.outputs(np.array([0, 0, 1]), np.array([1, 1, 1]), 2)  # no peeping otherwise
    assert (guess.argmax(1) == 0).all()


def test_of_several_labels_each_is_scored_by_its_frequency():
    taught_by = np.array([[1, 0, -1], [1, 1, 0], [0, 0, 1], [0, 0, -1]])
    guess = chance.outputs(taught_by, np.zeros((2, 3), int), 3)
    np.testing.assert_allclose(guess, [[0.5, 0.25, 0.5]] * 2)


def test_a_score_that_is_not_above_it_is_named():
    level = {"kNN": {"accuracy": 0.5}, "probe": {"accuracy": 0.5}}
    rows = {chance.COMMONEST: level, "raw pixels": {"kNN": {"accuracy": 0.1}}}
    rows["pretrained encoder"] = {"kNN": {"accuracy": 0.5}, "probe": {"accuracy": 0.51}}
    (said,) = chance.not_above(rows)
    assert said.startswith("pretrained encoder, kNN: 50.0 is not above 50.0")
    assert list(chance.not_above({"classifier": level})) == []


def test_an_archive_marks_images_without_a_label(tmp_path):
    from simclr_jax import recipes
    from simclr_jax.data import sources

    pixels = np.random.RandomState(0).randint(0, 256, (8, 4, 4, 3)).astype(np.uint8)
    labels = np.array([0, 1, -1, 1, 0, -1, 0, 1])
    np.savez(tmp_path / "a.npz", images=pixels, labels=labels, test_images=pixels,
             test_labels=0 * labels - 1)  # fmt: skip
    data = recipes.base().data
    data.source, data.path = "memory", str(tmp_path / "a.npz")
    train, test = sources.open_splits(data)
    np.testing.assert_array_equal(train.labels, labels)
    assert train.classes == 2 and train.example(2)[1] == NO_LABEL
    assert test.labels is None and test.classes == 0 and isinstance(test, Images)
