"""Each finding of a report at its threshold: silent just inside it, said just beyond it."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from simclr_jax import documents, recipes
from simclr_jax.reporting import findings, record
from simclr_jax.reporting.findings import Confusion, confusions

END = 100
QUIET = {  # curves, by metric: value at a share of the run
    "loss": lambda share: 5 + 4 * math.exp(-7 * share),
    "images_per_second": lambda share: 100.0,
}


@pytest.fixture
def said(tmp_path):
    """A function from curves, steps 0 to 100 by fives, to what is said of such a run."""

    def of(curves, geometry=None, errors=(), last=END, heartbeat=None, summary=None, **fields):
        config = recipes.base()
        config.train.batch_size, config.train.steps = 64, END
        for name, value in fields.items():
            config.update_from_flattened_dict({name.replace("__", "."): value})
        documents.write(tmp_path / "config.json", config.to_dict())
        steps = range(0, last + 1, 5)
        lines = []
        for i, step in enumerate(steps):
            line = {"step": step, "epoch": step / 10}
            for name, of in {**QUIET, **curves}.items():
                value = of(step / END) if callable(of) else of[i]
                line |= {} if value is None else {name: value}
            lines.append(line)
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
        if heartbeat is not None:
            documents.write(tmp_path / "lock.json", {"heartbeat": heartbeat})
        if summary is not None:
            (tmp_path / "results").mkdir(exist_ok=True)
            documents.write(tmp_path / "results" / "summary.json", {"scores": summary})
        found = findings.findings(record.read(str(tmp_path)), geometry, errors)
        return [(finding.text, finding.problem) for finding in found]

    return of


def one(found, words, problem=True):
    """Assert that this alone was said."""
    assert len(found) == 1 and words in found[0][0] and found[0][1] is problem, found


def test_a_quiet_run_is_told_nothing(said):
    assert said({}) == []


def constant(value):
    return lambda share: value


def ends(value, before):
    return lambda share: value if share == 1 else before


@pytest.mark.parametrize("tap", ["h", "z"])
def test_collapse_is_an_effective_rank_below_3(said, tap):
    name = f"effective_rank_{tap}"
    for rank in (3.0, 3.01):
        assert said({name: constant(rank)}) == []
    one(said({name: constant(2.99)}), f"{tap} has collapsed")
    one(said({}, {name: 2.99}), f"{tap} has collapsed")  # of what the run did not measure
    assert said({name: constant(5.0)}, {name: 1.0}) == []  # of what it did, its own number counts


def test_rank_is_lost_below_four_fifths_of_that_before_training(said):
    for rank in (8.01, 8.5):
        assert said({"effective_rank_h": ends(rank, 10.0)}) == []
    found = said({"effective_rank_h": ends(7.99, 10.0)})
    one(found, "rank of h is 8.0, below the 10.0 of the untrained network")
    # Not the largest of the run: the first.
    curve = [10.0] + [20.0] * 19 + [9.0]
    assert said({"effective_rank_h": curve}) == []


def test_one_direction_is_a_uniformity_above_minus_a_twentieth(said):
    rank = {"effective_rank_z": constant(9.0)}  # measured together with it
    assert said(rank | {"uniformity_z": constant(-0.0501)}) == []
    found = said(rank | {"uniformity_z": constant(-0.0499)})
    one(found, "All z point in nearly the same direction")


def score(accuracy, low, high):
    return {"accuracy": accuracy, "low": low, "high": high}


@pytest.mark.parametrize("rival", ["raw pixels", "untrained encoder"])
def test_an_encoder_is_not_above_a_rival_whose_interval_meets_its_own(said, rival):
    def of(high):
        other = {"kNN": score(0.5, 0.45, 0.501), "probe, all labels": score(0.6, 0.55, high)}
        own = {"kNN": score(0.7, 0.65, 0.75), "probe, all labels": score(0.7, 0.65, 0.75)}
        return said({}, summary={rival: other, "pretrained encoder": own})

    assert of(0.6499) == []
    for high in (0.65, 0.66):
        one(of(high), f"not clearly above {rival}: probe, all labels 70.0 % against 60.0 %")


def test_an_encoder_below_a_rival_is_said_to_be_below_it(said):
    rival = {"kNN": score(0.5, 0.4501, 0.55), "probe, all labels": score(0.4, 0.35, 0.45)}
    own = {"kNN": score(0.4, 0.35, 0.45), "probe, all labels": score(0.4, 0.35, 0.45)}
    below, level = said({}, summary={"raw pixels": rival, "pretrained encoder": own})
    one([below], "is below raw pixels: kNN 40.0 % against 50.0 %, their intervals do not meet.")
    one([level], "not clearly above raw pixels: probe, all labels 40.0 % against 40.0 %, their")
    rival["kNN"] = score(0.5, 0.45, 0.55)
    one(said({}, summary={"raw pixels": rival, "pretrained encoder": own}), "intervals meet, and")


def test_nothing_learned_is_a_loss_above_98_per_cent_of_chance(said):
    chance = 2 * math.log(2 * 64 - 1)
    for share in (0.9799, 0.5):
        assert said({"loss": constant(share * chance)}) == []
    found = said({"loss": constant(0.9801 * chance)})
    one(found, f"that of an encoder that has learned nothing {chance:.2f}")


def test_a_task_is_solved_beyond_99_per_cent(said):
    assert said({"contrast_accuracy": constant(0.99)}) == []
    one(said({"contrast_accuracy": constant(0.9901)}), "partner is found in 99.0% of all cases")


def test_a_stopped_run_is_one_without_a_heartbeat_of_two_minutes(said, monkeypatch):
    monkeypatch.setattr(record.time, "time", lambda: 10_000.0)
    one(said({}, last=95, heartbeat=10_000 - 121), "stopped at step 95 of 100")
    assert said({}, last=95, heartbeat=10_000 - 119) == []
    assert said({}, last=100, heartbeat=0) == []


def test_an_accuracy_has_fallen_by_more_than_3_points_below_its_best(said):
    best = 0.60

    def of(last, name="knn_accuracy"):
        curve = {0: 0.3, 20: 0.5, 40: best, 60: 0.59, 80: last, 100: last}
        return said({name: [curve.get(5 * i) for i in range(21)]})

    assert of(0.5701) == []
    one(of(0.5699), "kNN accuracy fell from 60.0% at step 40 to 57.0%")
    one(of(0.5, "probe_accuracy"), "probe accuracy fell from 60.0% at step 40 to 50.0%")
    one(of(0.5, "accuracy"), "classifier's accuracy fell from 60.0% at step 40 to 50.0%")


def test_an_accuracy_still_rises_by_more_than_2_points_in_the_last_fifth(said):
    def of(last, at=80):
        curve = {0: 0.3, 20: 0.35, 60: 0.4, at: 0.5, 100: last}
        return said({"knn_accuracy": [curve.get(5 * i) for i in range(21)]})

    assert of(0.5199) == []
    one(of(0.5201), "still rising: by 2.0 points since step 80", False)
    # What lies later than four fifths of the run is not what is compared with.
    one(of(0.5, at=85), "still rising: by 10.0 points since step 60", False)


def test_few_evaluations_tell_no_trend(said):
    three = {0: 0.6, 80: 0.5, 100: 0.4}
    assert said({"knn_accuracy": [three.get(5 * i) for i in range(21)]}) == []
    one(said({"knn_accuracy": [({50: 0.5} | three).get(5 * i) for i in range(21)]}), "fell from")


def test_a_loss_still_falls_by_more_than_3_per_cent_of_its_whole_fall(said):
    """Means of the last fifth and of the one before; the fall is from the first to the least."""

    def of(drop):
        return said({"loss": [9.0] + [5.0] * 12 + [5.0] * 4 + [5.0 - drop] * 4})

    # drop of 4 + drop in all: 3 % of it is 0.1237.
    assert of(0.1236) == []
    one(of(0.1239), "by 0.124 over the last 20% of the run, of 4.12 in all", False)


def test_a_loss_falls_by_more_than_two_standard_errors(said):
    random = np.random.RandomState(0)
    noise = random.normal(size=(2, 4))
    noise -= noise.mean(1, keepdims=True)
    error = math.sqrt(sum(x.var(ddof=1) / 4 for x in noise))

    def of(share):
        late = [*(5.5 + noise[0]), *(5.5 - share * error + noise[1])]
        return said({"loss": [9.0] + [8.0] * 12 + late})

    assert of(1.98) == []
    one(of(2.02), "still falling at the end", False)


def test_waiting_is_more_than_a_tenth_of_the_time_in_the_median(said):
    assert said({"input_wait": constant(0.1)}) == []
    one(said({"input_wait": constant(0.1001)}), "wait for images 10% of the time")
    # Of a few long waits the median says nothing, the mean would.
    assert said({"input_wait": [0.9] * 10 + [0.0] * 11}) == []


def test_training_became_slow_below_half_the_usual_speed(said):
    def of(late):
        return said({"images_per_second": [100.0] * 17 + [late] * 4})

    assert of(50.0) == []
    one(of(49.9), "50 images/s at the end, 100 in the median", False)
    assert said({"images_per_second": [100.0] * 19 + [10.0] * 2}) == []  # half of the last fifth
    one(said({"images_per_second": [100.0] * 18 + [10.0] * 3}), "became slow", False)


def test_a_class_is_confused_in_more_than_a_quarter_of_its_cases(said):
    errors = [Confusion("cat", "dog", 25, 0.25), Confusion("cow", "dog", 26, 0.26)]
    one(said({}, None, errors), '"cow" is taken for "dog" in 26% of all cases', False)


def test_at_most_six_are_said_the_gravest_first(said):
    errors = [Confusion("cat", "dog", 9, 0.9)] * 9
    curves = {"effective_rank_h": constant(1.0), "contrast_accuracy": constant(1.0)}
    found = said(curves, None, errors)
    assert len(found) == 6 and "collapsed" in found[0][0] and "partner" in found[1][0]


def test_the_commonest_errors_are_counted_by_label():
    counts = np.array([[50, 7, 0, 3], [1, 5, 9, 0], [0, 0, 2, 8], [0, 6, 0, 0]])
    found = [(e.label, e.guess, e.count, e.share) for e in confusions(counts, "abcd")]
    assert found == [
        ("b", "c", 9, pytest.approx(9 / 15)),
        ("c", "d", 8, pytest.approx(8 / 10)),
        ("a", "b", 7, pytest.approx(7 / 60)),
        ("d", "b", 6, pytest.approx(1.0)),
        ("a", "d", 3, pytest.approx(3 / 60)),
    ]
    assert len(confusions(np.array([[3, 2], [0, 4]]), "ab")) == 1
