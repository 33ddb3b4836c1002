"""Recordings of losses made by NumPy row by row, with settings that those in the folders lack.

The suite must find them right, and wrong as soon as one setting is.
"""

from __future__ import annotations

import golden
import made
import numpy as np
import pytest
import test_false_negatives
import test_labelled_losses
from losses import brute_force

pytestmark = pytest.mark.x64


def draw(name, *shape):
    """Return float64 numbers that are also those of float32."""
    return golden.fill(name, shape, 3, "normal").astype(np.float64)


def written(folder, kind, settings, loss, x, name, grad="grad", flavour="tf", **arrays):
    """Write a recording of `loss`, of an array, in float32, whose precision differences reach."""
    arrays |= {name: x, "loss": np.float32(loss(x)), grad: np.float32(made.slope(loss, x))}
    return made.write(folder, kind, settings, arrays, flavour, sensitivity=0.0)


SUPCON = {"n": 4, "dim": 3, "views": 3, "temperature": 0.4, "base_temperature": 0.3}
SUPCON |= {"contrast_mode": "one", "layout": "features [n, views, dim]"}


def supcon(folder, **changes):
    settings = SUPCON | changes
    mask = np.array([[0, 1, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 1, 1]])
    features = draw("features", 4, 3, 3)

    def loss(x):
        z, t = np.moveaxis(x, 1, 0), settings["temperature"]
        base, mode = settings["base_temperature"], settings["contrast_mode"]
        return brute_force.supervised_contrastive(z, lambda i, j: mask[i, j], t, base, mode)

    return written(folder, "supcon", settings, loss, features, "features", mask=mask)


NEIGHBOURS = {"n": 6, "dim": 3, "temperature": 3.0, "cosine_distance": False, "eps": 1e-3}
NEIGHBOURS |= {"optimised_temperature": True, "labels": [0, 1, 1, 0, 1, 0]}


def neighbours(folder, **changes):
    """The one step on t changes the temperature, and passes no gradient on."""
    settings = NEIGHBOURS | changes
    x, labels = draw("x", 6, 3), settings["labels"]
    kind = "angular" if settings["cosine_distance"] else "squared-L2"

    def at(x, t):
        options = settings["temperature"], kind, settings["eps"]
        return brute_force.soft_nearest_neighbour(x[None], labels, *options, t)

    t = 1.0
    if settings["optimised_temperature"]:
        t -= 0.1 * (at(x, 1 + 1e-5) - at(x, 1 - 1e-5)) / 2e-5
    loss, labels = (lambda x: at(x, t)), np.array(settings["labels"])
    return written(folder, "soft_nearest_neighbour", settings, loss, x, "x", labels=labels)


TRIPLETS = {"n": 7, "dim": 3, "margin": 0.45, "distance": "squared-L2", "soft": False}
TRIPLETS |= {"normalised_over_axis": 0, "labels": [0, 1, 1, 2, 0, 1, 0]}  # one is alone


def triplets(folder, kind="triplet_semi_hard", **changes):
    settings = TRIPLETS | changes
    axis, labels = settings["normalised_over_axis"], settings["labels"]
    x = draw("x", 7, 3)
    x = brute_force.unit(x) if axis == -1 else x

    def loss(x):
        z = brute_force.unit(x, 0)[None] if axis == 0 else x[None]
        margin = None if settings["soft"] else settings["margin"]
        law = brute_force.hard if kind == "triplet_hard" else brute_force.semi_hard
        return law(z, labels, margin, settings["distance"])

    return written(folder, kind, settings, loss, x, "x", labels=np.array(labels))


def pairs(folder, margin=2.4):
    a, b, same = draw("a", 5, 2), draw("b", 5, 2), np.array([1.0, 0, 0, 1, 0])

    def loss(a, b):
        d = np.sqrt(np.sum((a - b) ** 2, 1))
        return np.mean(np.where(same == 1, d**2, np.maximum(margin - d, 0) ** 2)) / 2

    arrays = {"a": a, "b": b, "same": same, "loss": np.float32(loss(a, b))}
    arrays["grad_a"] = np.float32(made.slope(lambda a: loss(a, b), a))
    arrays["grad_b"] = np.float32(made.slope(lambda b: loss(a, b), b))
    return made.write(folder, "pairwise", {"n": 5, "dim": 2, "margin": margin}, arrays)


FALSE = {"n": 4, "dim": 3, "support": 1, "views": 3, "temperature": 0.6, "top_k": 4}
FALSE |= {"threshold": 0.2, "hidden_norm": False}


def false_negatives(folder, kind="fnc_attraction", **changes):
    settings = FALSE | changes
    n, views = settings["n"], settings["views"]
    hidden, keys, old, arrays = draw("hidden", views * n, 3), None, [], {}
    if kind == "fnc_memory":
        arrays["memory"] = brute_force.unit(draw("memory", settings["memory_multiplier"] * n, 3))
        arrays["hidden_ema"] = arrays["memory"][: views * n]
        keys, old = arrays["hidden_ema"].reshape(views, n, 3), arrays["memory"][views * n :]

    def loss(x):
        z = brute_force.unit(x) if settings["hidden_norm"] else x
        options = (settings[key] for key in ("temperature", "top_k", "threshold"))
        return brute_force.false_negative_cancellation(
            z.reshape(views, n, 3),
            *options,
            "elimination" if "elimination" in kind else "attraction",
            keys,
            old,
        )

    return written(folder, kind, settings, loss, hidden, "hidden", **arrays)


SUITE = {
    supcon: test_labelled_losses.test_supervised_contrastive,
    neighbours: test_labelled_losses.test_soft_nearest_neighbour,
    triplets: test_labelled_losses.test_semi_hard_triplets,
    pairs: test_labelled_losses.test_pairwise,
    false_negatives: test_false_negatives.test_attraction,
}
RIGHT = [
    (supcon, {}),
    (supcon, {"contrast_mode": "all", "base_temperature": 0.07}),
    (neighbours, {}),
    (neighbours, {"cosine_distance": True, "optimised_temperature": False}),
    (triplets, {}),
    (triplets, {"distance": "angular", "normalised_over_axis": None, "margin": 0.2}),
    (triplets, {"distance": "L2", "normalised_over_axis": -1, "labels": [3] * 7}),
    (pairs, {"margin": 3.0}),
    (false_negatives, {}),
]
usual = pytest.mark.parametrize(("make", "changes"), RIGHT[::2])
slow = pytest.mark.parametrize(("make", "changes"), RIGHT[1::2])


@usual
def test_a_recording_is_judged_by_its_own_settings(make, changes, tmp_path):
    assert made.judge(SUITE[make], make(tmp_path, **changes)) >= 2


@pytest.mark.slow
@slow
def test_another_recording_is_judged_by_its_own_settings(make, changes, tmp_path):
    assert made.judge(SUITE[make], make(tmp_path, **changes)) >= 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "test", "changes"),
    [
        ("fnc_elimination", test_false_negatives.test_elimination, {"hidden_norm": True}),
        (
            "fnc_memory",
            test_false_negatives.test_attraction_with_a_memory,
            {"hidden_norm": True, "memory_multiplier": 5},
        ),
    ],
)
def test_false_negatives_of_other_kinds(kind, test, changes, tmp_path):
    recording = false_negatives(tmp_path, kind, **changes)
    assert made.judge(test, recording) == 2
    with pytest.raises(AssertionError, match="above"):
        made.judge(test, recording.with_settings(top_k=2))


@pytest.mark.slow
@pytest.mark.parametrize("soft", [False, True])
def test_hard_triplets_of_other_settings(soft, tmp_path):
    recording = triplets(tmp_path, "triplet_hard", soft=soft, margin=0.7)
    test = test_labelled_losses.test_hard_triplets
    assert made.judge(test, recording) == 2
    with pytest.raises(AssertionError, match="above"):
        made.judge(test, recording.with_settings(soft=not soft))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "wrong"),
    [
        (supcon, {"temperature": 0.41}),
        (supcon, {"base_temperature": 0.31}),
        (supcon, {"contrast_mode": "all"}),
        (neighbours, {"temperature": 3.1}),
        (neighbours, {"eps": 1e-5}),
        (neighbours, {"optimised_temperature": False}),
        (triplets, {"margin": 0.46}),
        (triplets, {"normalised_over_axis": None}),
        (triplets, {"distance": "L2"}),
        (pairs, {"margin": 2.41}),
        (false_negatives, {"temperature": 0.61}),
        (false_negatives, {"threshold": 0.9}),
        (false_negatives, {"top_k": 2}),
        (false_negatives, {"hidden_norm": True}),
    ],
)
def test_a_recording_of_other_settings_fails(make, wrong, tmp_path):
    recording = make(tmp_path)
    with pytest.raises(AssertionError, match="above"):
        made.judge(SUITE[make], recording.with_settings(**wrong))
