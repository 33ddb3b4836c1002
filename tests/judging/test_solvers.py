"""Each solver on features made up here, whose labels are partly wrong, computed again by hand.

Training, validation and test features differ in how many labels are wrong, so that a choice made
on the wrong ones, or a score of them, is another number.
"""

from __future__ import annotations

import functools
import types

import numpy as np
import pytest
from judging import by_hand
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from simclr_jax.errors import UserError
from simclr_jax.evaluate import clustering, mlp_probe, scores, sgd_probe
from simclr_jax.evaluate.logistic import Weights
from simclr_jax.judging import solvers
from simclr_jax.judging.feature_bank import Features
from simclr_jax.judging.solvers import Settings, Task

CLASSES, DIM = 4, 10


def features(count, wrong, seed, spread=1.6, several=False):
    """Return features around a centre for each class, of which the first has the most."""
    random = np.random.RandomState(seed)
    kinds = random.choice(CLASSES, count, p=[0.4, 0.3, 0.2, 0.1])
    x = 3 + by_hand.centres(CLASSES, DIM)[kinds] + spread * random.normal(size=(count, DIM))
    labels = np.where(random.uniform(size=count) < wrong, random.choice(CLASSES, count), kinds)
    if several:
        shown = np.eye(CLASSES, dtype=np.int8)[labels]
        shown[random.uniform(size=shown.shape) < 0.15] = 1
        shown[random.uniform(size=shown.shape) < 0.1] = -1
        labels = shown
    else:
        labels = labels.astype(np.int32)
    return Features(x.astype(np.float32), labels, CLASSES, np.arange(count))


FIT, CHOOSE, SCORE = features(90, 0.3, 1), features(60, 0.2, 2), features(70, 0.25, 3)


def task(fit=FIT, choose=CHOOSE, score=SCORE, metric="top-1", encoder=None, tap="h"):
    return Task(encoder, tap, None, fit, choose, score, CLASSES, metric, fit.known)


def run(solver, of=None, **settings):
    return list(solvers.SOLVERS[solver](of or task(), Settings(**settings)))


SCORERS = {
    "top-1": by_hand.top_1,
    "mean per class": by_hand.mean_per_class,
    "mAP": by_hand.mean_average_precision,
}
PARTS = {
    False: (FIT, CHOOSE, SCORE),
    True: tuple(
        features(count, wrong, seed, several=True)
        for count, wrong, seed in ((90, 0.3, 1), (60, 0.2, 2), (70, 0.25, 29))
    ),
}


@functools.cache
def chosen_by(metric):
    """Return scores of each penalty on each of the three parts, and the answer."""
    fit, choose, score = PARTS[metric == "mAP"]
    x, labels = (np.concatenate([getattr(p, n) for p in (fit, choose)]) for n in ("x", "labels"))
    rows = np.arange(len(labels))
    parts = {"fit": (fit.x, fit.labels), "test": (score.x, score.labels)}
    splits = [(rows[: len(fit)], rows[len(fit) :])]
    return by_hand.choose_penalty(x, labels, CLASSES, splits, SCORERS[metric], **parts)


@pytest.mark.parametrize("metric", list(SCORERS))
def test_the_penalty_is_the_best_on_validation_examples_alone(metric):
    fit, choose, score = PARTS[metric == "mAP"]
    (found,) = run("lbfgs", task(fit, choose, score, metric))
    tried, answer = chosen_by(metric)
    penalty = by_hand.best(tried["choose"])
    # Another choice would be seen, by another part or another metric.
    assert penalty not in (by_hand.best(tried["fit"]), by_hand.best(tried["test"]))
    assert by_hand.best(chosen_by("top-1")[0]["choose"]) != by_hand.best(
        chosen_by("mean per class")[0]["choose"]
    )
    assert found.protocol["chosen"] == {
        "penalty": pytest.approx(penalty),
        f"{metric} on validation": pytest.approx(tried["choose"][penalty]),
    }
    assert found.protocol["chosen on"] == "60 images of the validation split"
    assert found.protocol["fitted again on"] == "all 150"
    assert found.roles == ("fit", "choose", "score")
    expected = answer(penalty, score.x)
    np.testing.assert_allclose(centred(found.outputs), centred(expected), atol=0.02)
    value = scores.summary(score.labels, found.outputs)[metric]["value"]
    assert value == pytest.approx(SCORERS[metric](expected, score.labels))
    assert 0.35 < value < 0.8


def centred(outputs):
    """Leave out what is common to all classes, on which a softmax does not depend."""
    return outputs - outputs.mean(axis=1, keepdims=True)


@pytest.mark.parametrize("seed", [0, 3])
def test_without_validation_examples_each_fifth_of_the_training_chooses(seed):
    (found,) = run("lbfgs", task(choose=None), seed=seed)
    splits = by_hand.cross_validation(FIT.labels, seed)
    tried, answer = by_hand.choose_penalty(FIT.x, FIT.labels, CLASSES, splits, by_hand.top_1)
    penalty = by_hand.best(tried["choose"])
    assert found.protocol["chosen"]["penalty"] == pytest.approx(penalty)
    assert found.protocol["chosen"]["top-1 on validation"] == pytest.approx(
        tried["choose"][penalty]
    )
    assert found.protocol["chosen on"] == "5-fold cross-validation of the training images"
    assert found.protocol["fitted again on"] == "all 90" and found.roles == ("fit", "score")
    by_hand.same_as_likeliest(found.outputs.argmax(1), answer(penalty, SCORE.x))


def test_of_many_training_examples_one_fifth_chooses(monkeypatch):
    monkeypatch.setattr(solvers.linear_probe, "FEW", 89)
    (found,) = run("lbfgs", task(choose=None), seed=2)
    splits = by_hand.cross_validation(FIT.labels, 2)[:1]
    tried, _ = by_hand.choose_penalty(FIT.x, FIT.labels, CLASSES, splits, by_hand.top_1)
    assert found.protocol["chosen"]["penalty"] == pytest.approx(by_hand.best(tried["choose"]))
    assert found.protocol["chosen on"] == "18 of the training images"


def test_the_penalties_are_those_of_the_paper():
    np.testing.assert_allclose(solvers.linear_probe.PENALTIES, by_hand.PENALTIES)
    assert len(by_hand.PENALTIES) == 45 and solvers.linear_probe.FEW == 1000


RATES = (0.3, 3.0, 30.0, 300.0)


def held_out(seed, metric, epochs=2.3, batch=16):
    """Train each rate on nine tenths; return its scores on the last, on these, and on the test."""
    fold = by_hand.folds(FIT.labels, 10, seed)
    rest, tenth = FIT.take(np.flatnonzero(fold)), FIT.take(np.flatnonzero(fold == 0))
    steps, found = round(epochs * len(rest) / batch), {}
    for rate in RATES:
        kernel, bias = by_hand.sgd(rest.x, rest.labels, CLASSES, rate, batch, steps, seed)
        for name, part in (("held out", tenth), ("fitted", rest), ("test", SCORE)):
            value = SCORERS[metric](part.x @ kernel + bias, part.labels)
            found.setdefault(name, {})[rate] = value
    return found


@pytest.mark.parametrize("metric", ["top-1", "mean per class"])  # which choose two rates
def test_the_rate_of_sgd_is_the_best_on_the_examples_held_out(metric):
    seed = 1
    settings = {"rates": RATES, "epochs": 2.3, "batch_size": 16, "seed": seed}
    (found,) = run("sgd", task(metric=metric), **settings)
    tried = held_out(seed, metric)
    rate = lowest_best(tried["held out"])
    assert rate not in (lowest_best(tried["fitted"]), lowest_best(tried["test"]))
    assert found.protocol["chosen"] == {
        "rate for 256 images": rate,
        f"{metric} on held-out": pytest.approx(tried["held out"][rate]),
    }
    assert found.protocol["chosen on"] == "one in 10 training images, then trained on all 90"
    steps = round(2.3 * 90 / 16)
    kernel, bias = by_hand.sgd(FIT.x, FIT.labels, CLASSES, rate, 16, steps, seed)
    expected = SCORE.x @ kernel + bias
    np.testing.assert_allclose(found.outputs, expected, atol=1e-3 * np.abs(expected).max())
    assert found.name == "sgd" and found.roles == ("fit", "score")
    assert found.protocol["batch"] == 16 and found.protocol["epochs"] == 2.3
    assert found.protocol["views"] == "evaluation crop, kept"
    # Validation images are for others.
    (alone,) = run("sgd", task(choose=None, metric=metric), **settings)
    np.testing.assert_array_equal(alone.outputs, found.outputs)


def lowest_best(scores):
    return -by_hand.best({-rate: score for rate, score in scores.items()})


def test_of_equally_good_rates_the_lowest_is_taken():
    (found,) = run("sgd", rates=(2e-6, 1e-6, 3e-6), epochs=1, batch_size=90)
    assert found.protocol["chosen"]["rate for 256 images"] == 1e-6


def test_a_single_rate_needs_no_choice_and_several_labels_their_own_loss():
    fit, score = features(90, 0.3, 1, several=True), features(70, 0.25, 3, several=True)
    of = task(fit, None, score, "mAP")
    (found,) = run("sgd", of, rates=(3.0,), epochs=4, batch_size=200, seed=5)
    kernel, bias = by_hand.sgd(fit.x, fit.labels, CLASSES, 3.0, 200, 4, 5)
    np.testing.assert_allclose(found.outputs, score.x @ kernel + bias, atol=1e-4)
    assert found.protocol["batch"] == 90  # all there are
    assert found.protocol["chosen"] == {"rate for 256 images": 3.0, "mAP on held-out": None}


@pytest.mark.parametrize(
    "count, settings, batch, epochs, steps",
    [
        (99_999, {}, 512, 100, 19_531),
        (100_000, {}, 4096, 90, 2_197),
        (100_000, {"epochs": 0.5}, 4096, 0.5, 12),
        (99_999, {"batch_size": 1000}, 1000, 100, 10_000),
        (30, {}, 30, 100, 100),
        (30, {"batch_size": 20}, 20, 100, 150),
        (30, {"epochs": 0.01}, 30, 0.01, 1),
    ],
)
def test_sgd_is_as_long_as_the_papers_unless_one_says_otherwise(
    count, settings, batch, epochs, steps, monkeypatch
):
    asked = []

    def shuffled(x, labels, size, number, seed):
        asked.append((len(x), size, number, seed))
        return iter([(x[:size], labels[:size])])

    def fit(batches, dim, classes, rates, number):
        assert number == asked[-1][2]
        return Weights(np.zeros((len(rates), dim, classes)), np.zeros((len(rates), classes)))

    monkeypatch.setattr(sgd_probe, "shuffled", shuffled)
    monkeypatch.setattr(sgd_probe, "fit", fit)
    labels = (np.arange(count) % 2).astype(np.int32)
    many = Features(np.zeros((count, 1), np.float32), labels, 2, np.arange(count))
    of = Task(None, "h", None, many, None, many.take(np.arange(4)), 2, "top-1", many.known)
    (found,) = run("sgd", of, rates=(0.1, 1.0), seed=7, **settings)
    assert (found.protocol["batch"], found.protocol["epochs"]) == (batch, epochs)
    assert asked[-1] == (count, batch, steps, 7)
    rest = count - -(-count // 10)  # nine tenths choose the rate, in the same number of epochs
    size = min(batch, rest)
    assert asked[0] == (rest, size, max(1, round(epochs * rest / size)), 7)


MLP = {"mlp_rates": (0.003, 0.1), "mlp_decays": (0.0005, 0.1), "mlp_epochs": 8.0}


@pytest.mark.parametrize("metric", ["top-1", "mAP"])
def test_rate_and_decay_of_mlp_are_chosen_where_the_penalty_is(metric, monkeypatch):
    """On validation examples, by the metric; the scored ones are looked at once, at the end."""
    fit, choose, score = PARTS[metric == "mAP"]
    asked, rows = [], []
    real, outputs = mlp_probe.fit, mlp_probe.outputs
    monkeypatch.setattr(mlp_probe, "BLOCK", 32)

    def counted(layers, moments, x):
        rows.append(len(x))
        return outputs(layers, moments, x)

    monkeypatch.setattr(mlp_probe, "outputs", counted)

    def spied(x, labels, classes, splits, scorer, *rest, **named):
        asked.append((x, labels, splits, rest, named))
        return real(x, labels, classes, splits, scorer, *rest, **named)

    monkeypatch.setattr(mlp_probe, "fit", spied)
    (found,) = run("mlp", task(fit, choose, score, metric), seed=4, mlp_units=12, **MLP)
    assert rows == 4 * [32, 28] + [32, 32, 6]  # four pairs on 60 examples, one on the 70 scored
    ((x, labels, ((fitting, choosing),), rest, named),) = asked
    np.testing.assert_array_equal(x[fitting], fit.x)
    np.testing.assert_array_equal(x[choosing], choose.x)
    np.testing.assert_array_equal(labels[choosing], choose.labels)
    assert rest == (MLP["mlp_rates"], MLP["mlp_decays"])
    assert named == {"epochs": 8.0, "hidden": 12, "seed": 4}
    probe = real(x, labels, CLASSES, [(fitting, choosing)], scorer_of(metric), *rest, **named)
    assert found.protocol["chosen"] == {
        "rate": probe.rate,
        "decay": probe.decay,
        f"{metric} on validation": pytest.approx(max(probe.scores.values())),
    }
    assert found.protocol["chosen on"] == "60 images of the validation split"
    assert found.protocol["trained again on"] == "all 150"
    assert found.roles == ("fit", "choose", "score")
    want = np.asarray(outputs(probe.layers, probe.moments, score.x))
    np.testing.assert_allclose(found.outputs, want, atol=1e-5)
    assert SCORERS[metric](found.outputs, score.labels) > 0.4


def scorer_of(metric):
    return lambda outputs, labels: SCORERS[metric](outputs, labels)


NEIGHBOURS = ((9, 0.05), (9, 0.5), (9, None), (8, None), (1, None), (500, 0.02), (500, None))


def test_neighbours_are_training_examples_and_vote_as_they_are_told():
    found = run("knn", knn=NEIGHBOURS)
    assert [one.name for one in found] == [
        *("knn9-0.05", "knn9-0.5", "knn9", "knn8", "knn1", "knn90-0.02", "knn90")
    ]
    answers = set()
    for one, (k, temperature) in zip(found, NEIGHBOURS, strict=True):
        expected = by_hand.same_as_nearest(one.outputs, FIT.x, FIT.labels, SCORE.x, k, temperature)
        assert (one.protocol["k"], one.protocol["temperature"]) == (min(k, 90), temperature)
        assert one.protocol["bank"] == "90 training images" and one.roles == ("fit", "score")
        answers.add(expected.tobytes())
    assert len(answers) == len(NEIGHBOURS)  # each setting is seen
    assert 0.4 < np.mean(found[0].outputs == SCORE.labels) < 0.8
    assert Settings().knn == ((200, 0.1), (20, None))


def test_more_neighbours_than_there_are_come_once_under_their_number():
    sizes = np.bincount(FIT.labels)
    found = run("knn", knn=((500, None), (90, None), (100, 0.1), (100, 0.1000001), (91, 0.1)))
    assert [one.name for one in found] == ["knn90", "knn90-0.1", "knn90-0.1000001"]
    assert found[0].notes[0] == "k is 500, but only 90 images have a label to vote with: k is 90"
    (said,) = run("knn", knn=((sizes.min() + 1, None),))[0].notes
    assert f"more than the {sizes.min()} image(s) of the smallest class" in said
    assert run("knn", knn=((sizes.min(), None),))[0].notes == ()


@pytest.mark.parametrize("seed", [0, 1])
def test_clusters_are_those_of_scikit_learn_with_the_seed(seed):
    score = features(70, 0.25, 3, spread=2.5)
    (found,) = run("kmeans", task(score=score), seed=seed)
    unit = score.x / np.linalg.norm(score.x, axis=1, keepdims=True)
    clusters = KMeans(CLASSES, n_init=10, random_state=seed).fit_predict(unit)
    assert found.values == pytest.approx(
        {
            "NMI": normalized_mutual_info_score(score.labels, clusters),
            "ARI": adjusted_rand_score(score.labels, clusters),
        }
    )
    assert found.protocol["seed"] == seed and found.roles == ("score",)
    assert found.protocol["clustered"].startswith("the 70 images scored on")
    assert found.outputs is None and not found.protocol["mini-batches"]


@pytest.mark.parametrize("whole, mini", [(70, False), (69, True)])
def test_mini_batches_are_said_where_they_are_used(whole, mini, monkeypatch):
    monkeypatch.setattr(clustering, "WHOLE", whole)
    (found,) = run("kmeans")
    assert found.protocol["mini-batches"] == mini


def test_similar_images_are_sought_among_the_test_images():
    (found,) = run("retrieval")
    ones = np.ones(len(SCORE))
    for k in (1, 5, 10):
        expected = by_hand.recall(SCORE.x, SCORE.labels, k)
        got = found.measured[f"recall@{k}"]
        assert got(ones) == pytest.approx(expected.mean())
        assert got(np.arange(70.0)) == pytest.approx(np.average(expected, weights=np.arange(70)))
    assert 0.3 < by_hand.recall(SCORE.x, SCORE.labels, 1).mean() < 0.7
    assert found.roles == ("score",)
    assert found.protocol["retrieved from"] == "the 70 images scored on"


@pytest.mark.parametrize(
    "count, ks", [(2, [1]), (5, [1]), (6, [1, 5]), (10, [1, 5]), (11, [1, 5, 10])]
)
def test_as_many_are_retrieved_as_there_are_others(count, ks):
    (found,) = run("retrieval", task(score=SCORE.take(np.arange(count))))
    assert list(found.measured) == [f"recall@{k}" for k in ks]
    with pytest.raises(UserError, match="there is 1"):
        run("retrieval", task(score=SCORE.take(np.arange(1))))


def test_the_classifier_is_applied_to_the_test_features_at_its_tap():
    random = np.random.RandomState(0)
    weights = Weights(random.normal(size=(DIM, CLASSES)), random.normal(size=CLASSES))
    encoder = types.SimpleNamespace(classifier=("head2", weights), run="run@7")
    (found,) = run("classifier", task(encoder=encoder, tap="head2"))
    expected = SCORE.x.astype(float) @ weights.kernel + weights.bias
    np.testing.assert_allclose(found.outputs, expected, rtol=1e-5, atol=1e-5)
    assert found.roles == ("score",)
    with pytest.raises(UserError, match="reads head2: set --tap=head2"):
        run("classifier", task(encoder=encoder))
    encoder.classifier = ("h", Weights(weights.kernel[:, :3], weights.bias[:3]))
    with pytest.raises(UserError, match="tells 3 classes apart, the data have 4"):
        run("classifier", task(encoder=encoder))
