"""Images without a label, unreadable ones in memory, and several labels: who counts and who not."""

from __future__ import annotations

import numpy as np
import pytest
from judging import by_hand, noisy
from judging.noisy import CLASSES

from simclr_jax.data.sources import NO_LABEL, Images
from simclr_jax.errors import UserError
from simclr_jax.judging import linear_probe, shown
from simclr_jax.judging.datasets import Data
from simclr_jax.judging.linear_probe import Options
from simclr_jax.judging.solvers import Settings
from simclr_jax.stages.encoder import Encoder
from simclr_jax.train import saved

SETTINGS = Settings(knn=((4, 0.05),), rates=(3.0,), epochs=3, batch_size=16, seed=2)
OPTIONS = Options(("knn", "retrieval", "lbfgs"), settings=SETTINGS)
COUNTS = {"train": 71, "val": 37, "test": 52}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return noisy.write_run(tmp_path_factory.mktemp("run"), data__max_bad_fraction=0.2)


@pytest.fixture(scope="module")
def encoder(run):
    return Encoder.of(saved.read(str(run)))


def part(split):
    """Return images of which a fifth has no label and some are bad, and the rows that count."""
    pixels, labels = noisy.draw(split, COUNTS[split])
    random = np.random.RandomState(len(split))
    labels[random.uniform(size=len(labels)) < 0.2] = NO_LABEL
    bad = np.arange(len(labels)) % 11 == 4
    pixels = np.where(bad[:, None, None, None], 0, pixels).astype(np.uint8)
    return Images(pixels, labels, CLASSES, bad), np.flatnonzero((labels != NO_LABEL) & ~bad)


PARTS = {split: part(split) for split in COUNTS}


def data(**changed):
    fit, choose, score = (PARTS[split][0] for split in COUNTS)
    parts = {"fit": fit, "choose": choose, "score": score} | changed
    return Data("made up", "", {"fit": "train", "choose": "val", "score": "test"}, **parts)


@pytest.mark.parametrize("labels", ["all", "2"])
def test_guessing_the_commonest_class_stands_beside_the_scores(run, encoder, labels):
    """By all training labels, whichever of them may be used."""
    options = Options(("knn", "lbfgs", "retrieval"), labels=labels, settings=SETTINGS)
    _, (knn, lbfgs, retrieval), _ = judged(encoder, data(), options)
    taught, truth = PARTS["train"][0].labels, vectors(run, "test")[1]
    taught = taught[taught != NO_LABEL]
    common = np.bincount(taught).argmax()
    want = {"top-1": np.mean(truth == common), "mean per class": 1 / CLASSES}
    ranked = np.argsort(-np.bincount(taught), kind="stable")[:5]
    for one in (knn, lbfgs):
        level = {name: score["value"] for name, score in one.result["level"]["scores"].items()}
        more = {"top-5": np.isin(truth, ranked).mean()} if one is lbfgs else {}
        assert level == pytest.approx(want | more)
        assert one.result["level"]["of"] == f"the commonest class (class {common})"
    assert "level" not in retrieval.result
    text = "\n".join(shown.table([knn, lbfgs, retrieval]))
    assert text.count("the commonest class") == 1
    row = next(line for line in text.splitlines() if line.startswith("the commonest class"))
    assert f"{100 * want['top-1']:.1f}" in row


def test_a_score_that_guessing_reaches_is_named(encoder):
    _, (knn,), _ = judged(encoder, data(), Options(("knn",), settings=SETTINGS))
    assert list(shown.notes([knn])) == []
    level = knn.result["level"]["scores"]["top-1"]
    for value, said in ((level["value"], 1), (level["value"] + 1e-9, 0)):
        knn.result["scores"]["top-1"]["value"] = value
        assert len(list(shown.by_chance([knn]))) == said
    knn.result["notes"] = ["a setting was another"]
    assert list(shown.notes([knn])) == [f"{knn.result['name']}: a setting was another"]


def judged(encoder, of, options):
    said = []
    tasks = linear_probe.make_tasks(encoder, of, options, None, said.append)
    return tasks, list(linear_probe.judge(encoder, of, tasks, options)), said


def vectors(run, split, tap="h"):
    source, rows = PARTS[split]
    return noisy.of_run(run, source.pixels[rows], tap), source.labels[rows], rows


def test_images_without_a_label_and_bad_ones_neither_teach_nor_count(run, encoder):
    (task,), (knn, retrieval, lbfgs), _ = judged(encoder, data(), OPTIONS)
    for split, used in zip(COUNTS, (task.fit, task.choose, task.score), strict=True):
        x, labels, rows = vectors(run, split)
        np.testing.assert_array_equal(used.examples, rows)
        np.testing.assert_array_equal(used.labels, labels)
        np.testing.assert_allclose(used.x, x, atol=1e-5)
    (bank, known, _), (val, _, _), (new, labels, test) = (vectors(run, s) for s in COUNTS)
    by_hand.same_as_nearest(knn.arrays["predictions"], bank, known, new, 4, 0.05)
    np.testing.assert_array_equal(knn.arrays["examples"], test)
    np.testing.assert_array_equal(knn.arrays["labels"], labels)
    for k in (1, 5, 10):
        expected = by_hand.recall(new, labels, k).mean()
        assert retrieval.result["scores"][f"recall@{k}"]["value"] == pytest.approx(expected)
    told = {role: lbfgs.result["data"][role]["images"] for role in ("fit", "validation", "test")}
    assert told == {"fit": len(bank), "validation": len(val), "test": len(new)}
    for role, split in zip(("fit", "validation", "test"), COUNTS, strict=True):
        source, about = PARTS[split][0], lbfgs.result["data"][role]
        assert about["without_label"] == (source.labels == NO_LABEL).sum() > 3
        bad = source.bad & (source.labels != NO_LABEL)
        assert about.get("unreadable") == (None if role == "fit" else bad.sum())
    assert lbfgs.result["protocol"]["fitted again on"] == f"all {len(bank) + len(val)}"


def test_labels_are_drawn_from_images_that_have_one(run, encoder):
    options = Options(("knn",), labels="2", settings=SETTINGS)
    (task,), (knn,), _ = judged(encoder, data(), options)
    bank, known, train = vectors(run, "train")
    random = np.random.RandomState(2)
    rows = np.sort(
        [i for c in range(CLASSES) for i in random.permutation(np.flatnonzero(known == c))[:2]]
    )
    np.testing.assert_array_equal(task.fit.examples, train[rows])
    np.testing.assert_array_equal(task.fit.labels, known[rows])
    assert task.choose is None
    new = vectors(run, "test")[0]
    by_hand.same_as_nearest(knn.arrays["predictions"], bank[rows], known[rows], new, 4, 0.05)


def test_solvers_that_learn_nothing_read_no_training_images(encoder, monkeypatch):
    options = Options(("retrieval", "kmeans"), settings=SETTINGS)
    read, extract = [], linear_probe.feature_bank.extract

    def recorded(encoder, source, *given):
        read.append(source)
        return extract(encoder, source, *given)

    monkeypatch.setattr(linear_probe.feature_bank, "extract", recorded)
    of = data()
    (task,), _, _ = judged(encoder, of, options)
    assert read == [of.score] or [len(source) for source in read] == [52]
    assert len(task.fit) == 0 and task.choose is None


def several(split):
    source, _ = PARTS[split]
    random = np.random.RandomState(7)
    shown = np.eye(CLASSES, dtype=np.int8)[np.maximum(source.labels, 0)]
    shown[random.uniform(size=shown.shape) < 0.1] = 1
    shown[random.uniform(size=shown.shape) < 0.1] = NO_LABEL
    return Images(source.pixels, shown, CLASSES, source.bad)


def test_of_several_labels_each_counts_where_it_is_known(run, encoder):
    fit, choose, score = (several(split) for split in COUNTS)
    options = Options(("lbfgs", "sgd", "retrieval"), settings=SETTINGS)
    (task,), (lbfgs, sgd, retrieval), _ = judged(
        encoder, data(fit=fit, choose=choose, score=score), options
    )
    assert task.metric == "mAP"
    x, new = (noisy.of_run(run, s.pixels[~s.bad], "h") for s in (fit, score))
    known, labels = fit.labels[~fit.bad], score.labels[~score.bad]
    kernel, bias = by_hand.sgd(x, known, CLASSES, 3.0, 16, round(3 * len(x) / 16), 2)
    expected = new @ kernel + bias
    np.testing.assert_allclose(sgd.arrays["scores"], expected, atol=1e-3)
    np.testing.assert_array_equal(sgd.arrays["labels"], labels)
    value = sgd.result["scores"]["mAP"]["value"]
    assert value == pytest.approx(by_hand.mean_average_precision(sgd.arrays["scores"], labels))
    assert 0.3 < value < 0.9
    chosen = lbfgs.result["protocol"]["chosen"]
    both = [noisy.of_run(run, s.pixels[~s.bad], "h") for s in (fit, choose)]
    rows = np.split(np.arange(sum(map(len, both))), [len(both[0])])
    tried, answer = by_hand.choose_penalty(
        np.concatenate(both),
        np.concatenate([known, choose.labels[~choose.bad]]),
        CLASSES,
        [rows],
        by_hand.mean_average_precision,
        penalties=(chosen["penalty"], chosen["penalty"] * 100),
    )
    assert chosen["mAP on validation"] == pytest.approx(
        tried["choose"][chosen["penalty"]], abs=1e-3
    )
    expected = answer(chosen["penalty"], new)
    np.testing.assert_allclose(lbfgs.arrays["scores"], expected, atol=0.02 * np.abs(expected).max())
    shown, found = labels == 1, by_hand.cosines(new, new) - 9 * np.eye(len(new))
    nearest = found.argmax(axis=1)
    hits = (shown & shown[nearest]).any(axis=1)
    assert retrieval.result["scores"]["recall@1"]["value"] == pytest.approx(hits.mean())


def test_the_metric_that_is_asked_for_chooses(encoder):
    options = Options(("lbfgs",), settings=SETTINGS, metric="mean per class")
    (task,), (lbfgs,), _ = judged(encoder, data(), options)
    assert task.metric == "mean per class"
    assert set(lbfgs.result["protocol"]["chosen"]) == {"penalty", "mean per class on validation"}


def test_a_class_that_only_the_test_images_have_counts_as_one(encoder):
    score, _ = PARTS["test"]
    labels = np.where(np.arange(len(score)) % 9 == 0, CLASSES, score.labels).astype(np.int32)
    more = Images(score.pixels, labels, CLASSES + 1, score.bad)
    options = Options(("knn",), settings=SETTINGS, labels="4")
    (task,), (knn,), said = judged(encoder, data(score=more), options)
    assert task.classes == knn.result["data"]["classes"] == CLASSES + 1
    assert any(f"1 class(es) occur among the images scored on only, such as {CLASSES}" in x
               for x in said)  # fmt: skip
    right = knn.arrays["predictions"] == knn.arrays["labels"]
    assert not right[knn.arrays["labels"] == CLASSES].any()
    value = np.mean([right[knn.arrays["labels"] == c].mean() for c in range(CLASSES + 1)])
    assert knn.result["scores"]["mean per class"]["value"] == pytest.approx(value)
    assert (knn.arrays["labels"] == CLASSES).sum() > 3


def test_fewer_labelled_images_than_classes_are_too_few(encoder):
    source, _ = PARTS["train"]
    labelled = np.flatnonzero((source.labels >= 0) & ~source.bad)
    options = Options(("knn",), settings=Settings(knn=((1, None),)))
    hidden = np.full(len(source), NO_LABEL, np.int32)
    hidden[labelled[:CLASSES]] = source.labels[labelled[:CLASSES]]
    judged(encoder, data(fit=Images(source.pixels, hidden, CLASSES)), options)
    hidden[labelled[0]] = NO_LABEL
    with pytest.raises(UserError, match="has 5 labelled images to learn 6 classes from"):
        judged(encoder, data(fit=Images(source.pixels, hidden, CLASSES)), options)
    nothing = Images(source.pixels, np.full(len(source), NO_LABEL, np.int32), CLASSES)
    with pytest.raises(UserError, match="no image to be scored on in made up has a label"):
        judged(encoder, data(score=nothing), options)
