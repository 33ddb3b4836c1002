"""Which images, labels and vectors the linear probe's scores are of, found again from the files.

Labels are partly wrong, some files cannot be read, and the three splits differ, so that an image
too many, a label of another image or another split gives another number.
"""

from __future__ import annotations

import itertools
import json
import re

import numpy as np
import pytest
import scipy.stats
from judging import by_hand, noisy
from judging.noisy import CLASSES, PARTS
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from simclr_jax.errors import UserError
from simclr_jax.judging import linear_probe, results
from simclr_jax.judging.datasets import Wanted
from simclr_jax.judging.linear_probe import Options
from simclr_jax.judging.solvers import Settings
from simclr_jax.stages import build
from simclr_jax.train import saved

TAPS = ("h", "head1", "z", "group2", "pixels")
SEED = 3
KNN = ((5, 0.05), (4, None), (200, 0.02))
SETTINGS = Settings(knn=KNN, rates=(1.0, 30.0), epochs=3.3, batch_size=16, seed=SEED)
TRAIN, VAL, TEST = PARTS.values()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("scored")
    for part in PARTS.values():
        part.write(root / "images")
    return root


@pytest.fixture(scope="module")
def run(root):
    fields = {"data__source": "folder", "data__path": str(root / "images"), "eval__probe_tap": -1}
    noisy.write_run(root / "run", 5, **fields, seed=1)
    return noisy.write_run(root / "run", 7, **fields)


def judge(run, **options):
    """Judge, and return the results and arrays that were written now, and what was said."""
    said, checkpoints = [], run if isinstance(run, list) else [run]
    given = {"settings": SETTINGS, "max_bad_fraction": 0.1} | options
    wanted = given.pop("wanted", Wanted())
    linear_probe.run([str(one) for one in checkpoints], wanted, Options(**given), said.append)
    return "\n".join(said)


def words(name):
    """Leave out of a name the tag of other settings, and the seed that all of them have here."""
    name = re.sub(r"-[0-9a-f]{6}(?=$|-)", "", name)
    return re.sub(rf"(?<!_labels)-seed{SEED}(?=$|-)", "", name)


def read(run, name):
    (path,) = (path for path in results.paths(run) if words(path.stem) == words(name))
    result = results.read(path)
    return result, results.read_arrays(run, result)


@pytest.fixture(scope="module")
def said(run):
    every = judge(run, solvers=("knn",), taps=TAPS)
    every += judge(run, solvers=("lbfgs",), taps=("head1", "h"))  # h is not the first
    every += judge(run, solvers=("sgd", "kmeans", "retrieval"))
    return every + judge(run, solvers=("classifier",), taps=("head2",))


@pytest.fixture(scope="module")
def vectors(run):
    """Return the function from a part and a tap to features of its readable images."""
    found = {}

    def get(part, tap="h"):
        if (part.split, tap) not in found:
            found[part.split, tap] = noisy.of_run(run, part.pixels, tap)
        return found[part.split, tap]

    return get


def knn_name(k, temperature, tap, tail=""):
    k = min(k, len(TRAIN.labels))
    return f"knn{k}{'' if temperature is None else f'-{temperature:g}'}-{tap}{tail}"


def test_every_result_is_of_the_readable_test_images(run, said):
    assert len(results.paths(run)) == 3 * len(TAPS) + 5 + 1
    for path in results.paths(run):
        result, arrays = read(run, path.stem)
        np.testing.assert_array_equal(arrays["labels"], TEST.labels)
        np.testing.assert_array_equal(arrays["examples"], TEST.examples)
        assert result["seed"] == SEED and result["checkpoint"]["step"] == 7
        data = {"test": (TEST, "test")}
        if result["solver"] in ("lbfgs", "sgd", "knn"):
            data["fit"] = (TRAIN, "train")
        if result["solver"] == "lbfgs":
            data["validation"] = (VAL, "val")
        told = {k: v for k, v in result["data"].items() if isinstance(v, dict)}
        assert told == {
            role: {"split": split, "fingerprint": p.fingerprint(), "images": len(p.labels)}
            | ({} if role == "fit" else {"unreadable": len(p.names) - len(p.labels)})
            for role, (p, split) in data.items()
        }
        assert result["data"]["classes"] == CLASSES
        width = 192 if result["tap"] == "pixels" else 8 if result["tap"] == "group2" else 32
        told = f"{result['tap']}, {width} numbers, inference mode"
        assert result["protocol"]["features"] == told
        assert result["protocol"]["preprocessing"]["size"] == 8
        assert result["data"]["class_names"] == [f"c{i}" for i in range(CLASSES)]
    for part, count in ((TRAIN, 3), (VAL, 1), (TEST, 2)):
        assert f"{count} of {len(part.names)} images are unreadable and left out" in said
    splits = "74 to learn from (train), 39 to choose on (val), 53 to be scored on (test)"
    assert f"splits    {splits}" in said


def test_neighbours_at_each_tap_are_training_images(run, said, vectors):
    answers = set()
    for tap in TAPS:
        for k, temperature in KNN:
            _, arrays = read(run, knn_name(k, temperature, tap))
            bank, new = vectors(TRAIN, tap), vectors(TEST, tap)
            expected = by_hand.same_as_nearest(
                arrays["predictions"], bank, TRAIN.labels, new, k, temperature
            )
            answers.add(expected.tobytes())
    assert len(answers) == 3 * len(TAPS)


def test_features_that_are_kept_are_those_of_the_modules(run, said, vectors):
    kept = {json.loads(p.read_text())["data"]: p.parent for p in run.glob("features/*/about.json")}
    for part in PARTS.values():
        for tap in TAPS if part is not VAL else ("h",):
            with np.load(kept[part.fingerprint()] / f"{tap}-00000.npz") as shard:
                found = shard["x"][~shard["bad"]]
                np.testing.assert_array_equal(np.flatnonzero(~shard["bad"]), part.examples)
            np.testing.assert_allclose(found, vectors(part, tap), atol=1e-5, err_msg=tap)


def test_the_regression_is_chosen_on_validation_images_and_learns_from_them(run, said, vectors):
    result, arrays = read(run, "lbfgs-h")
    x = np.concatenate([vectors(TRAIN), vectors(VAL)])
    labels = np.concatenate([TRAIN.labels, VAL.labels])
    rows = np.split(np.arange(len(x)), [len(TRAIN.labels)])
    tried, answer = by_hand.choose_penalty(x, labels, CLASSES, [rows], by_hand.top_1)
    chosen = result["protocol"]["chosen"]
    assert tried["choose"][best_of(tried, chosen["penalty"])] == max(tried["choose"].values())
    assert chosen["top-1 on validation"] == pytest.approx(max(tried["choose"].values()))
    expected = answer(chosen["penalty"], vectors(TEST))
    by_hand.same_as_likeliest(arrays["predictions"], expected)
    fifth = np.sort(expected, axis=1)[:, -5]
    hits = expected[np.arange(len(expected)), TEST.labels] >= fifth
    low, high = by_hand.interval(lambda rows: hits[rows].mean(), len(hits), SEED)
    top_5 = {"value": hits.mean(), "low": low, "high": high}
    assert result["scores"]["top-5"] == pytest.approx(top_5)
    assert result["protocol"]["labels used"] == "all"


def best_of(tried, penalty):
    return min(tried["choose"], key=lambda p: abs(np.log(p / penalty)))


def test_sgd_learns_from_training_images_alone(run, said, vectors):
    result, arrays = read(run, "sgd-h")
    x, labels = vectors(TRAIN), TRAIN.labels
    fold = by_hand.folds(labels, 10, SEED)
    rest, tenth = np.flatnonzero(fold), np.flatnonzero(fold == 0)
    tried = {}
    for rate in SETTINGS.rates:
        steps = round(3.3 * len(rest) / 16)
        kernel, bias = by_hand.sgd(x[rest], labels[rest], CLASSES, rate, 16, steps, SEED)
        tried[rate] = by_hand.top_1(x[tenth] @ kernel + bias, labels[tenth])
    rate = -by_hand.best({-rate: score for rate, score in tried.items()})
    assert result["protocol"]["chosen"] == {
        "rate for 256 images": rate,
        "top-1 on held-out": pytest.approx(tried[rate]),
    }
    kernel, bias = by_hand.sgd(x, labels, CLASSES, rate, 16, round(3.3 * len(x) / 16), SEED)
    by_hand.same_as_likeliest(arrays["predictions"], vectors(TEST) @ kernel + bias)


def test_what_needs_no_training_images(run, said, vectors):
    x = vectors(TEST)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    clusters = KMeans(CLASSES, n_init=10, random_state=SEED).fit_predict(unit)
    assert read(run, "kmeans-h")[0]["scores"] == {
        "NMI": {"value": pytest.approx(normalized_mutual_info_score(TEST.labels, clusters))},
        "ARI": {"value": pytest.approx(adjusted_rand_score(TEST.labels, clusters))},
    }
    scores = read(run, "retrieval-h")[0]["scores"]
    assert set(scores) == {"recall@1", "recall@5", "recall@10"}
    for k in (1, 5, 10):
        hits = by_hand.recall(x, TEST.labels, k)
        low, high = by_hand.interval(lambda rows, hits=hits: hits[rows].mean(), len(hits), SEED)
        expected = {"value": hits.mean(), "low": low, "high": high}
        assert scores[f"recall@{k}"] == pytest.approx(expected)


def test_the_classifier_reads_the_last_layer_of_the_head(run, said, vectors):
    """`eval.probe_tap` is -1."""
    dense = saved.read(str(run)).variables("probe")["params"]["dense"]
    outputs = vectors(TEST, "head2") @ dense["kernel"] + dense["bias"]
    _, arrays = read(run, "classifier-head2")
    by_hand.same_as_likeliest(arrays["predictions"], outputs)


def test_scores_and_intervals_are_those_of_the_predictions(run, said):
    values = set()
    for path in results.paths(run):
        result, arrays = read(run, path.stem)
        if "predictions" not in arrays:
            continue
        expected = by_hand.intervals(arrays["labels"], arrays["predictions"], SEED)
        scores = {name: score for name, score in result["scores"].items() if name != "top-5"}
        assert set(scores) == set(expected)
        for name, score in scores.items():
            assert score == pytest.approx(expected[name], abs=1e-12), name
        value, low, high = (f"{100 * expected['top-1'][x]:.1f}" for x in ("value", "low", "high"))
        shown = f"{value} ({low}-{high})"
        told = {"solver": result.get("variant", result["solver"]), "tap": result["tap"]}
        above = said.replace("\n", " ")  # a table has what is the same in all of its rows
        rows = [re.split(" {2,}", line) for line in said.split("\n") if shown in line]
        assert any(
            all(word in row or f"{column} {word}" in above for column, word in told.items())
            for row in rows
        ), (told, shown)
        values.add(scores["top-1"]["value"])
    assert len(values) > 5 and 0.3 < np.median(sorted(values)) < 0.8


# Other choices of what is judged ------------------------------------------------------------------


def neighbours(run, name, x, labels, new):
    """Check the answers of the 4 nearest neighbours, and return those expected."""
    return by_hand.same_as_nearest(read(run, name)[1]["predictions"], x, labels, new, 4)


def drawn(count, seed):
    """Draw from each class `count(its examples)` of the shuffled ones, as `--labels` should."""
    random, rows = np.random.RandomState(seed), []
    for label in range(CLASSES):
        members = np.flatnonzero(TRAIN.labels == label)
        rows += sorted(random.permutation(members)[: count(len(members))].tolist())
    return np.sort(rows)


FEW = Settings(knn=((4, None),), seed=SEED)


@pytest.mark.parametrize(
    "labels, count",
    [("40%", lambda members: max(1, round(0.4 * members))), ("3", lambda members: 3)],
)
def test_labels_are_drawn_from_the_training_images_by_the_seed(run, said, vectors, labels, count):
    x, new, answers = vectors(TRAIN), vectors(TEST), []
    for seed in (SEED, SEED + 1):
        settings = Settings(knn=((4, None),), seed=seed)
        judge(run, solvers=("knn",), labels=labels, settings=settings)
        name = f"knn4-h-{labels.replace('%', 'pct')}_labels-seed{seed}"
        rows = drawn(count, seed)
        answers.append(neighbours(run, name, x[rows], TRAIN.labels[rows], new))
        result = read(run, name)[0]
        assert result["data"]["fit"]["images"] == len(rows)
        assert result["protocol"]["labels used"] == labels
    assert not np.array_equal(*answers)


def test_few_labels_choose_among_themselves(run, said, vectors):
    """A validation split would be more labels."""
    judge(run, solvers=("lbfgs",), labels="4")
    result, arrays = read(run, f"lbfgs-h-4_labels-seed{SEED}")
    rows = drawn(lambda members: 4, SEED)
    x, labels = vectors(TRAIN)[rows], TRAIN.labels[rows]
    splits = by_hand.cross_validation(labels, SEED)
    chosen = result["protocol"]["chosen"]
    penalty = chosen["penalty"]
    tried, answer = by_hand.choose_penalty(
        x, labels, CLASSES, splits, by_hand.top_1, penalties=(penalty,)
    )
    assert chosen["top-1 on validation"] == pytest.approx(tried["choose"][penalty])
    assert "validation" not in result["data"] and result["data"]["fit"]["images"] == len(rows)
    by_hand.same_as_likeliest(arrays["predictions"], answer(penalty, vectors(TEST)))


def test_a_list_names_the_images_whatever_lies_between_them(run, said, vectors, tmp_path):
    rows = np.array([2, 3, 9, 17, 30, 44, 60])
    names = [TRAIN.names[TRAIN.examples[row]] for row in rows]
    (tmp_path / "few.txt").write_text("\n".join(names[::-1]))
    judge(run, solvers=("knn",), labels=str(tmp_path / "few.txt"), settings=FEW)
    name = f"knn4-h-few_labels-seed{SEED}"
    neighbours(run, name, vectors(TRAIN)[rows], TRAIN.labels[rows], vectors(TEST))


def test_before_training_and_at_an_earlier_step(run, said, vectors):
    options = {"settings": FEW, "untrained": True, "cache": "none", "taps": ("pixels", "h")}
    text = judge(f"{run}@5", solvers=("knn",), **options)
    assert f"knn4-pixels-seed{SEED}-step5" in {path.stem for path in results.paths(run)}
    rows = [line for line in text.split("\n") if "pixels" in line]
    assert rows and not any("untrained" in row for row in rows)  # they are the same
    old = [noisy.of_run(f"{run}@5", part.pixels, "h") for part in (TRAIN, TEST)]
    config = saved.read(str(run)).config
    first = build.first_variables(config, 3)
    fresh = [noisy.features(config, first, part.pixels, "h") for part in (TRAIN, TEST)]
    neighbours(run, "knn4-h-step5", old[0], TRAIN.labels, old[1])
    # Vectors of a network before training are nearly alike: rounding decides some neighbours.
    expected = by_hand.nearest(by_hand.cosines(*fresh), TRAIN.labels, 4, None)
    found = [read(run, f"knn4-h{tail}")[1]["predictions"] for tail in ("", "-step5", "-untrained")]
    assert np.mean(found[2] == expected) > 0.9
    assert all(np.mean(a == b) < 0.8 for a, b in itertools.combinations(found, 2))
    steps = [
        read(run, f"knn4-h{tail}")[0]["checkpoint"]["step"] for tail in ("-step5", "-untrained")
    ]
    assert steps == [5, 0]


def test_splits_are_taken_as_they_are_named(run, vectors):
    turned = {"split": "val", "eval_split": "train", "validation_split": "test"}
    options = {"solvers": ("knn", "lbfgs"), "settings": FEW, "name": "turned", "cache": "none"}
    with pytest.raises(UserError, match=r"run trained on images of train of .*, .* by --seen"):
        judge(run, wanted=Wanted(**turned), **options)
    judge(run, wanted=Wanted(**turned, seen=True), **options)
    scored = read(run, "turned-knn4-h")[0]["protocol"]["scored images"]
    assert scored.startswith("images are scored that may have been trained on: ")
    neighbours(run, "turned-knn4-h", vectors(VAL), VAL.labels, vectors(TRAIN))
    _, arrays = read(run, "turned-knn4-h")
    np.testing.assert_array_equal(arrays["labels"], TRAIN.labels)
    data = read(run, "turned-lbfgs-h")[0]["data"]
    assert [data[role]["split"] for role in ("fit", "validation", "test")] == [
        "val",
        "test",
        "train",
    ]
    assert data["validation"]["images"] == len(TEST.labels)


def test_two_runs_are_told_apart_by_the_sign_test(run, said, root):
    other = noisy.write_run(
        root / "other", 9, data__source="folder", data__path=str(root / "images"), seed=4
    )
    text = judge([run, other], solvers=("knn",), settings=FEW, cache="none")
    (line,) = [x for x in text.split("\n") if "paired permutation test" in x]
    ours, theirs = (read(r, "knn4-h")[1]["predictions"] == TEST.labels for r in (other, run))
    points, p = re.search(r"top-1 ([+-][\d.]+) points, p = ([\d.e-]+) ", line).groups()
    assert line.startswith(f"{other}@9 against {run}@7, knn4-h-seed{SEED}: ")
    assert float(points) == pytest.approx(100 * (ours.mean() - theirs.mean()), abs=0.05)
    more, fewer = (ours & ~theirs).sum(), (theirs & ~ours).sum()
    exact = scipy.stats.binomtest(int(more), int(more + fewer)).pvalue
    assert float(p) == pytest.approx(exact, rel=0.06) and more != fewer
