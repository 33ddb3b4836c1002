"""The largest problems of a run in plain words, as far as its numbers show them.

A check whose numbers are missing, or within the threshold written here, says nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from simclr_jax.evaluate import chance
from simclr_jax.reporting.record import Curve, Record

MOST = 6  # said of a run
FEW_DIMENSIONS = 3.0  # an effective rank below this is collapse, whatever the width
ONE_DIRECTION = -0.05  # uniformity above this: all embeddings point the same way
RANK_LOST = 0.8  # of the effective rank before training
BY_CHANCE = 0.98  # of the way from a loss that cannot be lower to that of knowing nothing
TOO_EASY = 0.99  # partners found
LAST = 0.2  # the share of a run that is compared with the stretch before it
STILL_FALLING = 0.03  # of the loss's whole fall, in the last stretch
STILL_RISING = 0.02  # of accuracy, in the last stretch of evaluations
FELL_BACK = 0.03  # of accuracy, below the best of the run
WAITING = 0.1  # of the time
SLOWED = 0.5  # of the usual speed
CONFUSED = 0.25  # of a class taken for one other class


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something to know; `problem`: something to do something about."""

    text: str
    problem: bool = True


@dataclasses.dataclass(frozen=True)
class Confusion:
    """How often a label is taken for another class, and in which share of its examples."""

    label: str
    guess: str
    count: int
    share: float


def findings(
    record: Record,
    geometry: Mapping[str, float] | None = None,
    errors: Sequence[Confusion] = (),
) -> list[Finding]:
    """Return what stands out, the gravest first, at most `MOST`.

    Args:
      record: of the run.
      geometry: `effective_rank_h` and the like of its checkpoint, for what the run did not measure.
      errors: the commonest, see `confusions`.
    """
    last = {n: c.last for n, c in record.curves.items() if n.split("_")[0] in _INDICATORS}
    found: list[Finding] = []
    found += _not_finite(record)
    found += _collapse(record, {**(geometry or {}), **last})
    found += _baselines(record)
    for check in _CHECKS:
        found += check(record)
    found += [
        Finding(f'"{e.label}" is taken for "{e.guess}" in {e.share:.0%} of all cases.', False)
        for e in errors
        if e.share > CONFUSED
    ]
    return found[:MOST]


_INDICATORS = ("alignment", "uniformity", "effective")


def _not_finite(record: Record) -> Iterator[Finding]:
    bad = [name for name, curve in record.curves.items() if not np.isfinite(curve.values).all()]
    if bad:
        yield Finding(f"Not every value of {', '.join(bad)} is a finite number.")


def _collapse(record: Record, geometry: Mapping[str, float]) -> Iterator[Finding]:
    if record.curves and not record.step:
        return  # nothing has been trained: low ranks are to be expected
    # Who learns labels is to keep a direction for each class, which may be two, and no more.
    taught = record.method is not None and record.method.labels
    for name in ("h", "z"):
        rank, at = geometry.get(f"effective_rank_{name}"), f"effective_rank_{name}"
        before = record.curves.get(at)
        if rank is None or taught:
            continue
        if rank < FEW_DIMENSIONS:
            yield Finding(
                f"{name} has collapsed: its embeddings fill only {rank:.1f} dimensions (effective "
                f"rank). Look at the learning rate{_temperature(record)} and the normalisation."
            )
        elif before and before.steps[0] == 0 and rank < RANK_LOST * before.values[0]:
            yield Finding(
                f"The effective rank of {name} is {rank:.1f}, below the {before.values[0]:.1f} of "
                "the untrained network: training gives dimensions up instead of filling them."
            )
        if geometry.get(f"uniformity_{name}", -1.0) > ONE_DIRECTION:
            yield Finding(f"All {name} point in nearly the same direction (uniformity near 0).")


def _temperature(record: Record) -> str:
    """Name the temperature among what to look at, if the loss has one."""
    read = record.method.reads if record.method else ()
    return ", the temperature" if {"loss", "loss.temperature"} & {*read} else ""


def _baselines(record: Record) -> Iterator[Finding]:
    scores = (record.summary or {}).get("scores", {})
    what = "encoder" if "pretrained encoder" in scores else "classifier"
    trained = scores.get("pretrained encoder", scores.get("classifier", {}))
    for rival in (chance.COMMONEST, "raw pixels", "untrained encoder"):
        pairs = [
            (name, score, other)
            for name, score in trained.items()
            if _known(score) and _known(other := scores.get(rival, {}).get(name, {}))
        ]
        below = [name for name, score, other in pairs if score["high"] < other["low"]]
        level = [
            name
            for name, score, other in pairs
            if score["low"] <= other["high"] and name not in below
        ]
        for names, how, so in (
            (below, "below", "do not meet"),
            (level, "not clearly above", "meet"),
        ):
            if not names:
                continue
            ours, theirs = (100 * s[names[0]]["accuracy"] for s in (trained, scores[rival]))
            more = f", and the same holds for {', '.join(names[1:])}" if names[1:] else ""
            yield Finding(
                f"The {what} is {how} {rival}: {names[0]} {ours:.1f} % against "
                f"{theirs:.1f} %, their intervals {so}{more}."
            )


def _known(score: Mapping[str, float | None]) -> bool:
    return all(score.get(name) is not None for name in ("accuracy", "low", "high"))


def _learning(record: Record) -> Iterator[Finding]:
    curve, chance = record.curves.get("loss"), record.chance
    if curve is None or chance is None or record.floor is None or chance <= record.floor:
        return
    if curve.last > record.floor + BY_CHANCE * (chance - record.floor):
        yield Finding(
            f"The loss is {curve.last:.2f}, that of an encoder that has learned nothing "
            f"{chance:.2f}: hardly anything has been learned so far."
        )


def _easy(record: Record) -> Iterator[Finding]:
    curve = record.curves.get("contrast_accuracy")
    if curve is not None and curve.last > TOO_EASY:
        yield Finding(
            f"The partner is found in {curve.last:.1%} of all cases: the task is solved. Stronger "
            "augmentation or more negatives would leave more to learn."
        )


def _unfinished(record: Record) -> Iterator[Finding]:
    total = record.total_steps
    if total and record.step < total and not record.alive:
        yield Finding(
            f"The run stopped at step {record.step} of {total} and nothing works on it now: the "
            "same command continues it."
        )


def _trend(curve: Curve) -> tuple[float, float] | None:
    """Return the change from the stretch before the last to the last, and its standard error."""
    values = curve.values[np.isfinite(curve.values)]
    rows = int(LAST * len(values))
    if rows < 3:
        return None
    before, after = values[-2 * rows : -rows], values[-rows:]
    error = np.sqrt(before.var(ddof=1) / rows + after.var(ddof=1) / rows)
    return float(after.mean() - before.mean()), float(error)


def _still_falling(record: Record) -> Iterator[Finding]:
    curve, total = record.curves.get("loss"), record.total_steps
    if curve is not None and record.chances is not None:
        # While a memory fills the loss rises for that alone.
        curve = Curve(curve.steps, curve.values - record.chances)
    if curve is None or not total or record.step < total or (trend := _trend(curve)) is None:
        return
    change, error = trend
    fall = float(curve.values[0] - np.nanmin(curve.values))
    if change < -max(2 * error, STILL_FALLING * fall):
        yield Finding(
            f"The loss was still falling at the end: by {-change:.3g} over the last {LAST:.0%} of "
            f"the run, of {fall:.3g} in all. A longer run would go lower.",
            problem=False,
        )


def _accuracy(record: Record) -> Iterator[Finding]:
    names = {"knn_accuracy": "kNN", "probe_accuracy": "probe", "accuracy": "classifier's"}
    for name, called in names.items():
        curve = record.curves.get(name)
        if curve is None or np.isfinite(curve.values).sum() < 4:
            continue
        best = int(np.nanargmax(curve.values))
        if curve.last < curve.values[best] - FELL_BACK:
            yield Finding(
                f"The {called} accuracy fell from {curve.values[best]:.1%} at step "
                f"{curve.steps[best]:.0f} to {curve.last:.1%}."
            )
        back = int(np.searchsorted(curve.steps, (1 - LAST) * curve.steps[-1], side="right")) - 1
        gain, done = curve.last - curve.values[back], record.step >= record.total_steps
        if record.total_steps and done and back > 0 and gain > STILL_RISING:
            yield Finding(
                f"The {called} accuracy was still rising: by {100 * gain:.1f} points since step "
                f"{curve.steps[back]:.0f}. A longer run would probably go higher.",
                problem=False,
            )


def _speed(record: Record) -> Iterator[Finding]:
    waited = record.curves.get("input_wait")
    if waited is not None and waited.median > WAITING:
        yield Finding(
            f"The devices wait for images {waited.median:.0%} of the time: more "
            "decoding threads, a faster disk or another augment.placement would help."
        )
    curve = record.curves.get("images_per_second")
    if curve is None or len(curve.values) < 10:
        return
    usual, rows = curve.median, max(1, int(LAST * len(curve.values)))
    late = Curve(curve.steps[-rows:], curve.values[-rows:]).median
    if late < SLOWED * usual:
        yield Finding(
            f"Training became slow: {late:.0f} images/s at the end, {usual:.0f} in the median.",
            problem=False,
        )


def _unreadable(record: Record) -> Iterator[Finding]:
    if record.unreadable:
        yield Finding(
            f"At least {record.unreadable} training image(s) could not be read; "
            "unreadable_train*.jsonl in the workdir lists them.",
            problem=False,
        )


_CHECKS: tuple[Callable[[Record], Iterator[Finding]], ...] = (
    *(_learning, _easy, _unfinished, _accuracy, _still_falling, _speed, _unreadable),
)


def confusions(counts: np.ndarray, names: Sequence[str], most: int = 5) -> list[Confusion]:
    """Return the commonest errors of a matrix `[C, C]` of examples by label and prediction."""
    wrong = counts - np.diag(np.diag(counts))
    shares = wrong / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    places = np.argsort(-wrong, axis=None, kind="stable")[:most]
    cells = [(int(place) // len(names), int(place) % len(names)) for place in places]
    return [
        Confusion(names[i], names[j], int(wrong[i, j]), float(shares[i, j]))
        for i, j in cells
        if wrong[i, j]
    ]
