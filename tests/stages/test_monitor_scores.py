"""Scores of pretraining, during a run and at its end, computed again without the package.

On noisy images, some of them without a label and some unreadable: kNN, the online probe, the probes
of few and of all labels, and what the two views of held-out images say. An evaluation changes
nothing and depends on no device.
"""

from __future__ import annotations

import dataclasses
import functools
import types

import jax
import numpy as np
import pytest
from sklearn.metrics import pairwise
from stages import noisy
from train import tiny

from simclr_jax import parallel
from simclr_jax.evaluate import linear_probe
from simclr_jax.stages import monitor, pretrain, views
from simclr_jax.stages.inputs import HELD_OUT, Inputs
from simclr_jax.train import timetable as timetables

# Weaker ones than 0.01, of which none is ever chosen here, take the reference long.
PENALTIES = [p for p in np.logspace(-6, 5, 12) if p > 1e-2 / 2]
FIELDS = {"knn_k": 40, "knn_temperature": 0.02, "few_labels": 4, "probe_tap": 1}
TRAIN, TEST = (
    noisy.split(1, unlabelled=7, unreadable=5),
    noisy.split(2, (70, 50, 40, 30), unlabelled=9, unreadable=6),
)


def recipe(**fields):
    named = {f"eval__{name}": value for name, value in (FIELDS | fields).items()}
    return tiny.recipe(data__max_bad_fraction=0.2, **named)


@functools.cache
def stage():
    c, mesh = recipe(), parallel.make_mesh(8)
    timetable = timetables.make(c, len(TRAIN))
    return pretrain.make_stage(c, timetable, Inputs(c, TRAIN, TEST), mesh), mesh


@functools.cache
def state():
    """A state that no initialisation gives, whose probe is right now and then."""
    made, mesh = stage()
    drawn = tiny.perturbed(made.init())
    stats = jax.tree.map(lambda leaf: np.abs(leaf + 0.2), drawn.batch_stats)
    drawn = drawn._replace(batch_stats=stats)
    x, labels = seen(TRAIN, drawn.variables)[0][1], TRAIN.labels[TRAIN.counted]
    kernel = noisy.regression(x, labels, 3.0)
    probe = {"dense": {"kernel": kernel[:-1], "bias": kernel[-1]}}
    probe = jax.tree.map(np.float32, probe)
    return parallel.replicate(mesh, drawn._replace(params=drawn.params | {"probe": probe}))


def seen(source, variables, rows=None):
    """Return the layers of some images of a split, by default of those that count, and labels."""
    rows = source.counted if rows is None else rows
    images = noisy.evaluation_views(source, rows)
    return noisy.features(recipe(), variables, images), source.labels[rows]


@functools.cache
def evaluated():
    return stage()[0].evaluate(state())


@functools.cache
def compared():
    return stage()[0].compare(state())


@functools.cache
def of(row):
    """Return features and labels of both splits for a row of the comparison."""
    if row == "raw pixels":
        bank, queries = (noisy.evaluation_views(s, s.counted) for s in (TRAIN, TEST))
        flat = [x.reshape(len(x), -1).astype(np.float64) for x in (bank, queries)]
        return *flat, TRAIN.labels[TRAIN.counted], TEST.labels[TEST.counted]
    variables = state().variables if row == "pretrained encoder" else stage()[0].init().variables
    (bank, labels), (queries, truth) = (seen(s, variables) for s in (TRAIN, TEST))
    return bank[0], queries[0], labels, truth


def share(guess, truth):
    return float(np.mean(guess == truth))


ROWS = ("raw pixels", "untrained encoder", "pretrained encoder")


def test_who_always_guesses_the_commonest_class_is_scored_beside_them():
    taught, truth = TRAIN.labels[TRAIN.counted], TEST.labels[TEST.counted]
    want = share(np.bincount(taught).argmax(), truth)
    level = compared()["the commonest class"]
    assert level.keys() == compared()["pretrained encoder"].keys()
    assert all(score["accuracy"] == pytest.approx(want) for score in level.values())
    assert np.bincount(truth).argmax() == np.bincount(taught).argmax() and 0.25 < want < 0.5


@pytest.mark.parametrize("row", ROWS)
def test_knn_searches_among_labelled_training_images(row):
    bank, queries, labels, truth = of(row)
    want = share(noisy.nearest(bank, labels, queries, 40, 0.02), truth)
    # The untrained encoder's vectors point in nearly the same direction: rounding decides some.
    error = 0.05 if row == "untrained encoder" else 1e-6
    assert compared()[row]["kNN"]["accuracy"] == pytest.approx(want, abs=error)
    assert 0.3 < want < 0.85
    itself = noisy.nearest(queries, truth, queries, 40, 0.02)
    assert row == "untrained encoder" or share(itself, truth) != pytest.approx(want)


def test_knn_of_a_run_is_that_of_its_end():
    bank, queries, labels, truth = of("pretrained encoder")
    want = share(noisy.nearest(bank, labels, queries, 40, 0.02), truth)
    assert evaluated()["knn_accuracy"] == pytest.approx(want)
    # With another setting it would be another number.
    for k, temperature in ((200, 0.02), (40, 10.0), (40, 0.1), (39, 0.02), (41, 0.02), (42, 0.02)):
        other = noisy.nearest(bank, labels, queries, min(k, len(bank)), temperature)
        assert share(other, truth) != pytest.approx(want), (k, temperature)


def test_images_without_a_label_or_unreadable_count_nowhere():
    """Were they in, these scores would be of 190 images and not of 175."""
    assert len(TEST) == 190 and len(TEST.counted) == 175
    found = [score["accuracy"] for scores in compared().values() for score in scores.values()]
    found += [evaluated()[name] for name in ("knn_accuracy", "probe_accuracy")]
    for accuracy in found:
        assert 175 * accuracy == pytest.approx(round(175 * accuracy))


def test_the_online_probe_reads_its_tap():
    (layers, truth) = seen(TEST, state().variables)
    dense = jax.device_get(state().params["probe"]["dense"])
    want = share(np.argmax(layers[1] @ dense["kernel"] + dense["bias"], axis=1), truth)
    assert evaluated()["probe_accuracy"] == pytest.approx(want)
    assert 0.4 < want < 0.8
    other = share(np.argmax(layers[0] @ dense["kernel"] + dense["bias"], axis=1), truth)
    assert other != pytest.approx(want)


def test_the_probe_of_few_labels_has_those_of_seed_0_and_is_chosen_among_them():
    bank, queries, labels, truth = of("pretrained encoder")

    def score(rows):
        return share(noisy.probed(bank[rows], labels[rows], queries, PENALTIES), truth)

    rows = noisy.few(labels, 4, seed=0)
    found = compared()["pretrained encoder"]["probe, 4 labels a class"]["accuracy"]
    assert found == pytest.approx(score(rows)) and 0.3 < found < 0.75
    others = [noisy.few(labels, 4, seed=1), noisy.few(labels, 3, seed=0)]
    assert all(score(rows) != pytest.approx(found) for rows in others)


def test_the_probe_of_all_labels_has_all_and_is_chosen_on_every_fifth():
    bank, queries, labels, truth = of("pretrained encoder")
    want = share(noisy.probed(bank, labels, queries, PENALTIES), truth)
    found = compared()["pretrained encoder"]["probe, all labels"]["accuracy"]
    assert found == pytest.approx(want) and 0.4 < found < 0.8


def test_the_penalty_is_chosen_on_training_images_alone(monkeypatch):
    """What is handed to the probes of each row, and what they are asked about."""
    calls, fit = [], linear_probe.fit

    def recorded(features, labels, classes, splits, score, penalties):
        calls.append((features, labels, splits, penalties))
        return fit(features, labels, classes, splits, score, penalties[6:7])

    monkeypatch.setattr(monitor.linear_probe, "fit", recorded)
    stage()[0].compare(state())
    wanted = []
    for row in ROWS:
        bank, _, labels, _ = of(row)
        few, every = noisy.few(labels, 4, 0), np.arange(len(labels))
        wanted += [(bank[rows], labels[rows]) for rows in (few, every)]
    for (x, y, splits, penalties), (bank, labels) in zip(calls, wanted, strict=True):
        np.testing.assert_allclose(x, bank, rtol=2e-3, atol=2e-4)
        np.testing.assert_array_equal(y, labels)
        np.testing.assert_allclose(penalties, np.logspace(-6, 5, 12))
        place = noisy.fold(labels, 0)
        assert len(splits) == 5
        for k, (fitted, chosen) in enumerate(splits):
            np.testing.assert_array_equal(fitted, np.flatnonzero(place != k))
            np.testing.assert_array_equal(chosen, np.flatnonzero(place == k))


def test_intervals_are_those_of_resampled_images():
    """The standard error of a share, 1.96 of it either way, within what resampling may differ."""
    widths = []
    for scores in compared().values():
        for name, score in scores.items():
            p = score["accuracy"]
            error = np.sqrt(p * (1 - p) / 175)
            assert score["low"] == pytest.approx(p - 1.96 * error, abs=0.025), name
            assert score["high"] == pytest.approx(p + 1.96 * error, abs=0.025), name
            widths.append((score["high"] - score["low"]) / (2 * error))
    assert np.mean(widths) == pytest.approx(1.96, rel=0.08)  # those of 90 % have 1.64


def test_there_are_as_few_labels_as_the_smallest_class_can_give():
    c = recipe(few_labels=10)
    counts = np.bincount(TRAIN.labels[TRAIN.counted])
    small = np.flatnonzero(TRAIN.labels == np.argmin(counts))
    # All but 12 of the smallest class have no label; 3 of these 12 cannot be read.
    rows = np.setdiff1d(np.arange(len(TRAIN)), small[12:])
    train = TRAIN.take(rows)
    damaged = np.flatnonzero(train.labels == np.argmin(counts))[:3]
    train = dataclasses.replace(train, unreadable=tuple(damaged.tolist()))
    inputs = Inputs(c, train, TEST)
    judge = monitor.Monitor(c, None, inputs, parallel.make_mesh(1))
    random = np.random.RandomState(0)
    bank, queries = (
        {"h": random.normal(size=(len(s.counted), 5)), "label": s.labels[s.counted]}
        for s in (train, TEST)
    )
    assert list(judge._scores(bank, queries))[1] == "probe, 9 labels a class"
    assert judge.protocol()["probe"]["few_labels_per_class"] == 9


# Signs of collapse --------------------------------------------------------------------------------


def rank(x):
    values = np.linalg.svd(x - x.mean(0), compute_uv=False)
    shares = values[values > 0] / values.sum()
    return np.exp(-np.sum(shares * np.log(shares)))


def test_alignment_uniformity_and_rank_are_of_two_views_of_held_out_images():
    """Views as drawn: no evaluation crop is taken of them, and unreadable images are replaced."""
    c, made = recipe(), stage()[0]
    batch = Inputs(c, TRAIN, TEST).held_out(monitor.PAIRS)
    assert len(batch["image"]) == len(TEST)
    whole = np.asarray(jax.jit(views.view_maker(c))(batch)["views"], np.float32)
    first, second = (noisy.features(c, state().variables, whole[:, view]) for view in (0, 1))
    for name, layer in (("h", 0), ("z", 2)):
        one, other = (x[layer] / np.linalg.norm(x[layer], axis=1)[:, None] for x in (first, second))
        distances = pairwise.euclidean_distances(one, squared=True)
        apart = distances[~np.eye(len(one), dtype=bool)]
        want = {
            "alignment": np.mean(np.sum((one - other) ** 2, axis=1)),
            "uniformity": np.log(np.mean(np.exp(-2 * apart))),
            "effective_rank": rank(first[layer]),
        }
        for indicator, value in want.items():
            found = evaluated()[f"{indicator}_{name}"]
            assert found == pytest.approx(value, rel=2e-3), (indicator, name)
        assert rank(second[layer]) != pytest.approx(want["effective_rank"], rel=2e-3)
    assert made.formats.keys() >= {"effective_rank_h", "effective_rank_z", "alignment_z"}


def test_held_out_views_are_of_the_first_images_at_positions_of_their_own():
    c = recipe()
    inputs = Inputs(c, TRAIN, TEST)
    batch = inputs.held_out(20)
    position = np.asarray(batch["position"]).astype(object) @ np.array([2**32, 1], object)
    assert position.tolist() == [2**62 + i for i in range(20)] and HELD_OUT == 2**62
    for row, image in enumerate(batch["image"]):
        if row not in TEST.unreadable:
            np.testing.assert_array_equal(image, TEST.images.pixels[row])
    np.testing.assert_array_equal(inputs.held_out(20)["image"], batch["image"])


# What else reads the training images --------------------------------------------------------------


@pytest.mark.parametrize("tap, layer", [("h", 0), ("head1", 1), ("z", 2)])
def test_training_features_are_of_all_readable_images_with_their_numbers(tap, layer):
    c = recipe()
    judge = judged_by()
    found, numbers = judge.training_features(state().variables, tap)
    readable = np.setdiff1d(np.arange(len(TRAIN)), TRAIN.unreadable)
    np.testing.assert_array_equal(numbers, readable)
    images = noisy.evaluation_views(TRAIN, readable)
    want = noisy.features(c, state().variables, images)[layer]
    np.testing.assert_allclose(found, want, rtol=2e-3, atol=2e-4)


@functools.cache
def judged_by():
    c = recipe()
    return monitor.Monitor(c, None, Inputs(c, TRAIN, TEST), parallel.make_mesh(8))


def test_the_protocol_says_what_was_done():
    compared()
    protocol = stage()[0].protocol()
    counts = {"images": (175, 106), "without_label": (9, 7), "unreadable": (6, 5)}
    assert (len(TEST.counted), len(TRAIN.counted)) == counts["images"] != (len(TEST), len(TRAIN))
    for what, pair in counts.items():
        assert (protocol[f"held_out_{what}"], protocol[f"training_{what}"]) == pair
    assert protocol["knn"] == {"k": 40, "temperature": 0.02}
    assert protocol["probe"]["few_labels_per_class"] == 4
    assert protocol["probe"]["few_labels_seed"] == 0
    np.testing.assert_allclose(protocol["probe"]["penalties"], np.logspace(-6, 5, 12))
    prints = [Inputs(recipe(), TRAIN, TEST).train.fingerprint(), TEST.fingerprint()]
    assert protocol["bank"].endswith(prints[0]) and protocol["bank"].startswith("train: ")
    assert protocol["held_out"].startswith("test: ") and prints[0] not in protocol["held_out"]


@pytest.mark.parametrize("probe, knn", [(True, False), (False, True), (False, False)])
def test_what_is_switched_off_is_not_measured(probe, knn):
    class Fake(monitor.Monitor):
        def __init__(self):
            self._config, self._encode = recipe(probe=probe, knn=knn), None
            self._train = self._test = types.SimpleNamespace(classes=4)

        def _geometry(self, state):
            return {"rank": 1.0}

        def _extract(self, *_):
            x = np.eye(4, 3) + 1
            return {"h": x, "guess": np.arange(4), "label": np.array([0, 1, 2, 0])}

    want = (
        {"rank"} | ({"probe_accuracy"} if probe else set()) | ({"knn_accuracy"} if knn else set())
    )
    assert Fake().evaluate(types.SimpleNamespace(variables={})).keys() == want


# What an evaluation leaves alone ------------------------------------------------------------------

PROBED = ["kNN", "probe, 4 labels a class", "probe, all labels"]


def test_encoder_is_the_same_after_evaluation_which_repeats_itself():
    before = jax.tree.map(lambda leaf: np.array(leaf).tobytes(), state())
    want = evaluated()
    assert stage()[0].evaluate(state()) == want
    assert compared()
    assert jax.tree.map(lambda leaf: np.array(leaf).tobytes(), state()) == before


def test_evaluation_does_not_depend_on_the_number_of_devices():
    c, mesh = recipe(), parallel.make_mesh(1)
    made = pretrain.make_stage(c, timetables.make(c, len(TRAIN)), Inputs(c, TRAIN, TEST), mesh)
    one = made.evaluate(parallel.replicate(mesh, jax.device_get(state())))
    assert one == pytest.approx(evaluated(), rel=1e-4)


def test_evaluation_says_what_the_log_shows():
    held_out = {name for name in stage()[0].formats if name.split("_")[0] in ("knn", "probe")}
    assert held_out <= evaluated().keys()


def test_final_comparison_has_every_score_of_every_row():
    rows = ["the commonest class", "raw pixels", "untrained encoder", "pretrained encoder"]
    assert list(compared()) == rows
    assert all(list(scores) == PROBED for scores in compared().values())
    measured = compared()["pretrained encoder"]["kNN"]["accuracy"]
    assert measured == evaluated()["knn_accuracy"]


def test_what_stands_beside_the_trained_encoder_does_not_depend_on_it():
    made, mesh = stage()
    other = made.compare(parallel.replicate(mesh, made.init()))
    assert other["pretrained encoder"] == other["untrained encoder"]
    assert other["untrained encoder"] == compared()["untrained encoder"]
    assert other["raw pixels"] == compared()["raw pixels"]
    assert compared()["pretrained encoder"] != compared()["untrained encoder"]
