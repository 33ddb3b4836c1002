"""What a report measures of a checkpoint, computed again from its weights and images."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from sklearn import metrics
from stages import noisy
from stages.written import write_run

import simclr_jax
from simclr_jax.reporting import embedding_sections, record, report
from simclr_jax.train import saved


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "images.npz"
    splits = {"train": noisy.split(1).images, "test": noisy.split(2, (30, 20, 16, 13)).images}
    arrays = {f"{name}_images": split.pixels for name, split in splits.items()}
    arrays |= {f"{name}_labels": split.labels for name, split in splits.items()}
    np.savez(path, **arrays)
    return path, splits


@pytest.fixture(scope="module")
def run(images, tmp_path_factory):
    fields = {"data__source": "memory", "data__path": str(images[0])}
    fields |= {"eval__knn": True, "eval__knn_k": 25, "eval__knn_temperature": 0.02}
    return write_run(tmp_path_factory.mktemp("run") / "run", step=7, seed=3, **fields)


@pytest.fixture(scope="module")
def vectors(run, images):
    """`h` of both splits."""
    there, found = saved.read(str(run)), {}
    parts = {part: there.variables(part) for part in ("encoder", "head")}
    kinds = ("params", "batch_stats")
    variables = {kind: {part: v[kind] for part, v in parts.items()} for kind in kinds}
    for name, split in images[1].items():
        shown = np.float32([noisy.evaluation_view(image, 8) for image in split.pixels])
        found[name] = noisy.features(there.config, variables, shown)[0]
    return found


def examined(run, monkeypatch):
    monkeypatch.setattr(report, "project", lambda x: (x[:, :2], "two of its numbers"))
    return report._measured(record.read(str(run)), lambda line: None)


def test_the_confusions_are_those_of_knn_among_the_training_images(
    run, images, vectors, monkeypatch
):
    x, y = vectors, {name: split.labels for name, split in images[1].items()}
    guess = noisy.nearest(x["train"], y["train"], x["test"], 25, 0.02)
    found = examined(run, monkeypatch)
    want = metrics.confusion_matrix(y["test"], guess, labels=range(4))
    np.testing.assert_array_equal(found.judged.counts, want)
    assert 0.3 < np.trace(want) / want.sum() < 0.8
    assert found.judged.what.startswith("kNN on h (k = 25, temperature 0.02)")
    said = str(embedding_sections.confusion("", found))
    assert f"{np.trace(want) / want.sum():.1%} of 79 images are right" in said
    each = want.sum(axis=1)
    assert f"{each.argmax()}, the commonest of them, is right in {each.max() / 79:.1%}" in said
    # Few are held out: training images join them on the map.
    assert found.learned == 118 and found.pictures
    np.testing.assert_array_equal(found.labels, np.concatenate([y["test"], y["train"]]))
    together = np.concatenate([x["test"], x["train"]])
    np.testing.assert_allclose(found.points, together[:, :2], rtol=2e-3, atol=2e-4)
    assert found.checkpoint.endswith("@7")
    assert found.images.startswith("79 held-out and 118 training images")
    # Each row: a held-out image, and the training images nearest to it, nearest first.
    cosine = metrics.pairwise.cosine_similarity(x["test"], x["train"])
    for query, *near in found.neighbours:
        own = [(image == query.pixels).all() for image in images[1]["test"].pixels].index(True)
        rows = np.argsort(-cosine[own])[: report.NEAREST]
        for tile, row in zip(near[:3], rows[:3], strict=True):
            assert tile.similarity == pytest.approx(cosine[own, row], abs=1e-4)
            assert tile.said == str(y["train"][row])
            assert tile.agrees == (y["train"][row] == y["test"][own])


def test_where_the_run_has_not_counted_neighbours_as_many_vote_as_its_images_allow(
    images, vectors, tmp_path, monkeypatch
):
    """200, the custom for large sets, would let the largest class win every vote."""
    fields = {"data__source": "memory", "data__path": str(images[0])}
    fields |= {"eval__knn": False, "eval__knn_k": 200, "eval__knn_temperature": 0.02}
    run = write_run(tmp_path / "run", step=7, seed=3, **fields)
    x, y = vectors, {name: split.labels for name, split in images[1].items()}
    guess = noisy.nearest(x["train"], y["train"], x["test"], 11, 0.02)  # of 118
    found = examined(run, monkeypatch)
    want = metrics.confusion_matrix(y["test"], guess, labels=range(4))
    np.testing.assert_array_equal(found.judged.counts, want)
    assert found.judged.what.startswith("kNN on h (k = 11, temperature 0.02)")


def test_the_newest_result_of_these_weights_and_images_is_shown(run, images, monkeypatch):
    weights = simclr_jax.load(str(run)).fingerprint
    name = examined(run, monkeypatch).images.rpartition(" of ")[2]
    random = np.random.RandomState(0)

    def made(number, **about):
        labels, guesses = random.randint(0, 4, (2, 50 + number))
        result = {"name": f"r{number}", "scores": {}, "protocol": {}, "tap": "h"}
        result |= {"checkpoint": {"weights": weights}, "data": {"name": name}} | about
        return result, {"labels": labels, "predictions": guesses}

    found = [
        made(0),
        made(1),
        made(2, checkpoint={"weights": "others"}),
        made(3, data={"name": "others"}),
        made(4, tap="pixels"),
    ]
    one = dataclasses.replace(
        record.read(str(run)),
        results=[result for result, _ in found],
        outputs={result["name"]: arrays for result, arrays in found},
    )
    monkeypatch.setattr(report, "project", lambda x: (None, ""))
    judged = report._measured(one, lambda line: None).judged
    arrays = found[1][1]
    want = metrics.confusion_matrix(arrays["labels"], arrays["predictions"])
    np.testing.assert_array_equal(judged.counts, want)
    assert judged.what == "the result r1"


def test_of_too_many_classes_there_is_no_matrix_and_that_is_said(run, monkeypatch):
    """It would have their square of cells: of a million classes more than there is memory."""
    monkeypatch.setattr(report, "MOST_CLASSES", 3)
    monkeypatch.setattr(report, "_counted", lambda *_: 1 / 0)
    found = examined(run, monkeypatch)
    assert found.judged is None
    said = str(embedding_sections.confusion("", found))
    assert "There is none, for 4 classes are too many." in said


def test_of_many_images_a_report_takes_some_from_everywhere():
    split = noisy.split(1).images
    few = report._some(split, 50)
    numbers = [
        next(i for i, image in enumerate(split.pixels) if (image == one).all())
        for one in few.pixels
    ]
    assert len(set(numbers)) == 50 and numbers == sorted(numbers)
    assert min(numbers) < 12 and max(numbers) > 105
    np.testing.assert_array_equal(few.labels, split.labels[numbers])
    assert report._some(split, len(split)) is split


def test_geometry_is_written_tap_by_tap():
    random = np.random.RandomState(0)
    first = {tap: random.normal(size=(60, 5)).astype(np.float32) for tap in ("h", "z")}
    second = {
        tap: x + 0.6 * random.normal(size=x.shape).astype(np.float32) for tap, x in first.items()
    }
    pairs = {tap: report.pairs(first[tap], second[tap]) for tap in first}
    found = embedding_sections.Examined("run@1", "", pairs, None, "", None, [], [], None)
    said = str(embedding_sections.geometry("", found))
    for tap in first:
        one, other = (x[tap] / np.linalg.norm(x[tap], axis=1)[:, None] for x in (first, second))
        cosine = one @ other.T
        apart = ~np.eye(60, dtype=bool)
        truth = np.r_[np.ones(60), np.zeros(apart.sum())]
        told = metrics.roc_auc_score(truth, np.r_[np.diag(cosine), cosine[apart]])
        alignment = np.mean(np.sum((one - other) ** 2, axis=1))
        squares = metrics.pairwise.euclidean_distances(one, squared=True)[apart]
        uniformity = np.log(np.mean(np.exp(-2 * squares)))
        values = np.linalg.svd(first[tap] - first[tap].mean(0), compute_uv=False)
        shares = values / values.sum()
        rank = np.exp(-np.sum(shares * np.log(shares)))
        for number in (f"{alignment:.3g}", f"{uniformity:.3g}", f"{rank:.3g}", f"{told:.1%}"):
            assert f">{number}<" in said, (tap, number)
    named = report._named_indicators(found)
    assert named["alignment_z"] == pytest.approx(alignment, rel=1e-4)
    assert report.FEW == 50 and not report._named_indicators(
        embedding_sections.Examined(
            "",
            "",
            {"h": report.pairs(first["h"][:49], second["h"][:49])},
            None,
            "",
            None,
            [],
            [],
            None,
        )
    )
