"""The ways to judge features, by name: what each fits, and how it describes its settings."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from simclr_jax.data.sources import Source
from simclr_jax.errors import UserError
from simclr_jax.evaluate import (
    clustering,
    knn,
    linear_probe,
    logistic,
    mlp_probe,
    retrieval,
    scores,
    sgd_probe,
)
from simclr_jax.judging.crop_flip import CROPS, Views
from simclr_jax.judging.datasets import check_one_label
from simclr_jax.judging.feature_bank import Features
from simclr_jax.judging.settings import Settings
from simclr_jax.stages.encoder import Encoder
from simclr_jax.stages.scored import neighbours

RECALLS = (1, 5, 10)
LARGE = 100_000  # images from which on the papers' ImageNet protocol is the default for sgd
HELD_OUT = 10  # one in so many training images helps to choose the rate of sgd


@dataclasses.dataclass(frozen=True)
class Task:
    """Features to learn from and to be scored on.

    Attributes:
      encoder: that made them, at `tap`.
      source: of the images behind `fit.examples`.
      fit: what may be learned from: labelled examples.
      choose: to choose settings on; None: a part of `fit`.
      score: to be scored on.
      classes: number of classes.
      metric: by which settings are chosen: "top-1", "mean per class", "mAP" or "11-point mAP".
      taught: labels by which classes are told to be frequent: of all training images, also those
        whose labels may not be used.
    """

    encoder: Encoder
    tap: str
    source: Source
    fit: Features
    choose: Features | None
    score: Features
    classes: int
    metric: str
    taught: np.ndarray


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a solver found.

    Attributes:
      name: of the solver with its settings, for file names.
      protocol: every setting that decides the number, and what was chosen.
      roles: the splits that were looked at.
      outputs: of the examples scored: classes `[m]`, or scores `[m, classes]`; or None.
      measured: further statistics, see `evaluate.scores`.
      values: further numbers, which have no interval.
      notes: sentences that a reader of the result should know.
    """

    name: str
    protocol: dict[str, Any]
    roles: tuple[str, ...] = ("fit", "score")
    outputs: np.ndarray | None = None
    measured: dict[str, scores.Statistic] = dataclasses.field(default_factory=dict)
    values: dict[str, float] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()


def lbfgs(task: Task, settings: Settings) -> Iterator[Outcome]:
    """Fit logistic regression with an L2 penalty chosen on validation examples."""
    x, labels, splits, chosen_on = _to_choose(task, settings.seed)
    probe = linear_probe.fit(x, labels, task.classes, splits, _scorer(task.metric))
    protocol = {
        "solver": "L-BFGS, logistic regression on centred features of mean square 1",
        "labels an image": "several, one against the rest" if labels.ndim == 2 else "one",
        "penalties": "45 from 1e-6 to 1e5 on the sum of losses (1 / C of scikit-learn)",
        "chosen": {"penalty": probe.penalty, f"{task.metric} on validation": _best(probe.scores)},
        "chosen on": chosen_on,
        "fitted again on": f"all {len(x)}",
        "stops at gradients of": [linear_probe.TOLERANCE, linear_probe.LAST_TOLERANCE],
        "or after steps": f"{linear_probe.MAX_STEPS}, from the next stronger penalty",
    }
    roles = ("fit", "score") if task.choose is None else ("fit", "choose", "score")
    outputs = np.asarray(logistic.logits(probe.weights, task.score.x))
    yield Outcome("lbfgs", protocol, roles, outputs)


def sgd(task: Task, settings: Settings) -> Iterator[Outcome]:
    """Train the papers' probe, its rate chosen on examples held out of the training set."""
    count = len(task.fit)
    large = count >= LARGE
    batch = min(settings.batch_size or (4096 if large else 512), count)
    epochs = settings.epochs or (90 if large else 100)
    train = functools.partial(_sgd, task, settings, batch, epochs)
    fold = linear_probe.folds(task.fit.known, HELD_OUT, settings.seed)
    found: dict[float, float] = {}
    if len(settings.rates) > 1:
        tried, _ = train(np.flatnonzero(fold), settings.rates)
        held_out, score = task.fit.take(np.flatnonzero(fold == 0)), _scorer(task.metric)
        for i, rate in enumerate(settings.rates):
            outputs = logistic.logits(_one(tried, i), held_out.x)
            found[rate] = score(np.asarray(outputs), held_out.known)
    rate = max(found, key=lambda rate: (found[rate], -rate), default=settings.rates[0])
    weights, views = train(np.arange(count), (rate,))
    protocol = {
        "solver": "SGD, Nesterov momentum 0.9, cosine to 0, no warm-up, no regularisation",
        "batch": batch,
        "epochs": epochs,
        "rates": list(settings.rates),
        "chosen": {"rate for 256 images": rate, f"{task.metric} on held-out": _best(found)},
        "chosen on": f"one in {HELD_OUT} training images, then trained on all {count}",
    }
    outputs = np.asarray(logistic.logits(_one(weights, 0), task.score.x))
    name = "sgd_crop_flip" if settings.augment else "sgd"
    yield Outcome(name, protocol | views, outputs=outputs)


def mlp(task: Task, settings: Settings) -> Iterator[Outcome]:
    """Train RotNet's classifier, its rate and decay chosen on validation examples."""
    x, labels, splits, chosen_on = _to_choose(task, settings.seed)
    probe = mlp_probe.fit(
        x,
        labels,
        task.classes,
        splits,
        _scorer(task.metric),
        settings.mlp_rates,
        settings.mlp_decays,
        epochs=settings.mlp_epochs,
        hidden=settings.mlp_units,
        seed=settings.seed,
    )
    width = settings.mlp_units or mlp_probe.units(task.classes)
    protocol = {
        "solver": f"two hidden layers of {width} units with batch normalisation and ReLU, SGD, "
        f"Nesterov momentum {mlp_probe.MOMENTUM:g}",
        "labels an image": "several, one against the rest" if labels.ndim == 2 else "one",
        "features centred": "divided by one number, to mean square 1",
        "batch": min(mlp_probe.BATCH, len(x)),
        "epochs": settings.mlp_epochs,
        "rate falls": f"to {mlp_probe.FALL:g} of itself after "
        f"{', '.join(f'{part:.0%}' for part in mlp_probe.DROPS)}",
        "rates": list(settings.mlp_rates),
        "decays of all parameters": list(settings.mlp_decays),
        "chosen": {
            "rate": probe.rate,
            "decay": probe.decay,
            f"{task.metric} on validation": _best(probe.scores),
        },
        "chosen on": chosen_on,
        "trained again on": f"all {len(x)}",
    }
    roles = ("fit", "score") if task.choose is None else ("fit", "choose", "score")
    outputs = mlp_probe.answers(probe.layers, probe.moments, mlp_probe.blocks(task.score.x))
    yield Outcome("mlp", protocol, roles, outputs)


def nearest(task: Task, settings: Settings) -> Iterator[Outcome]:
    """Classify by the nearest neighbours in the training set, in each of the conventions."""
    labels, done = _one_label(task.fit, "knn"), set()
    for asked, temperature in settings.knn:
        k = min(asked, len(task.fit))
        if (k, temperature) in done:  # another one was too large as well
            continue
        done.add((k, temperature))
        votes = "one vote each" if temperature is None else f"exp(s / {temperature:g}) votes"
        protocol = {
            "solver": f"{k} nearest neighbours by cosine similarity s, {votes}",
            "k": k,
            "temperature": temperature,
            "bank": f"{len(task.fit)} training images",
        }
        found = knn.classify(task.fit.x, labels, task.score.x, task.classes, k, temperature)
        tail = "" if temperature is None else f"-{_shortest(temperature)}"
        notes = neighbours(asked, np.bincount(labels), f"k is {asked}", "--knn")
        yield Outcome(f"knn{k}{tail}", protocol, outputs=found, notes=tuple(notes))


def kmeans(task: Task, settings: Settings) -> Iterator[Outcome]:
    """Cluster the scored images without labels, and compare with their classes."""
    _one_label(task.score, "kmeans")
    clusters = clustering.kmeans(task.score.x, task.classes, settings.seed)
    protocol = {
        "solver": f"k-means into {task.classes} clusters, features of norm 1",
        "starts": clustering.STARTS,
        "seed": settings.seed,
        "mini-batches": len(task.score) > clustering.WHOLE,
        "clustered": f"the {len(task.score)} images scored on; no label is used",
    }
    agreement = clustering.agreement(task.score.known, clusters)
    ones = np.ones(len(task.score))  # of resamples, in which images recur, both would be higher
    values = {name: of(ones) for name, of in agreement.items()}
    yield Outcome("kmeans", protocol, ("score",), values=values)


def similar(task: Task, settings: Settings) -> Iterator[Outcome]:
    """Retrieve images of the same class among the scored images."""
    ks = [k for k in RECALLS if k < len(task.score)]
    if not ks:
        raise UserError("--solver=retrieval needs 2 images to be scored on, there is 1: give more")
    hits = retrieval.recall_hits(task.score.x, task.score.known, ks)
    protocol = {
        "solver": "retrieval by cosine similarity, each image against all others",
        "retrieved from": f"the {len(task.score)} images scored on",
    }
    measured = {f"recall@{k}": _mean(found) for k, found in hits.items()}
    yield Outcome("retrieval", protocol, ("score",), measured=measured)


def classifier(task: Task, settings: Settings) -> Iterator[Outcome]:
    """Score the classifier in the checkpoint: a released one, or the probe of pretraining."""
    weights = _weights(task.encoder, task.tap, task.classes)
    protocol = {
        "solver": "the linear classifier in the checkpoint, as it is",
        "classes": "taken to be those of the data, in their order",
    }
    outputs = np.asarray(logistic.logits(weights, task.score.x))
    yield Outcome("classifier", protocol, ("score",), outputs)


SOLVERS: dict[str, Callable[[Task, Settings], Iterator[Outcome]]] = {
    "lbfgs": lbfgs,
    "sgd": sgd,
    "mlp": mlp,
    "knn": nearest,
    "kmeans": kmeans,
    "retrieval": similar,
    "classifier": classifier,
}
LEARN = (
    "lbfgs",
    "sgd",
    "mlp",
    "knn",
)  # from training images; the others look at the scored ones alone
CHOOSE = ("lbfgs", "mlp")  # on images of a split of their own, where there is one


def check(
    solver: str, encoder: Encoder, tap: str, source: Source, classes: int, settings: Settings
) -> None:
    """Raise what a solver would raise of its encoder and images, before anything is computed.

    Args:
      solver: a name in `SOLVERS`.
      encoder, tap, classes, settings: what it would be given.
      source: of the images to learn from, which has labels.
    """
    if solver in ("knn", "kmeans"):
        _check_one_label(source.multi_label, solver)
    elif solver == "sgd" and settings.augment:
        check_one_label(source, CROPS)
    elif solver == "classifier":
        _weights(encoder, tap, classes)


def _weights(encoder: Encoder, tap: str, classes: int) -> logistic.Weights:
    """Return the classifier in a checkpoint; raise `UserError` if it does not fit."""
    if encoder.classifier is None:
        raise UserError(f"{encoder.run} has no classifier: use --solver=lbfgs")
    own, weights = encoder.classifier
    if own != tap:
        raise UserError(f"the classifier of {encoder.run} reads {own}: set --tap={own}")
    if len(weights.bias) != classes:
        raise UserError(
            f"the classifier of {encoder.run} tells {len(weights.bias)} classes apart, the "
            f"data have {classes}: use --solver=lbfgs"
        )
    return weights


def _to_choose(task: Task, seed: int) -> tuple[np.ndarray, np.ndarray, linear_probe.Splits, str]:
    """Return features, labels, which of them fit and which choose, and the latter in words."""
    x, labels = task.fit.x, task.fit.known
    if task.choose is not None:
        rows, count = np.arange(len(x) + len(task.choose)), len(x)
        x = np.concatenate([x, task.choose.x])
        labels = np.concatenate([labels, task.choose.known])
        chosen_on = f"{len(task.choose)} images of the validation split"
        return x, labels, [(rows[:count], rows[count:])], chosen_on
    splits = linear_probe.splits(labels, seed)
    if len(splits) > 1:
        return x, labels, splits, f"{len(splits)}-fold cross-validation of the training images"
    return x, labels, splits, f"{len(splits[0][1])} of the training images"


def _sgd(
    task: Task,
    settings: Settings,
    batch: int,
    epochs: float,
    rows: np.ndarray,
    rates: Sequence[float],
) -> tuple[logistic.Weights, dict[str, str]]:
    """Train a probe for each rate on some examples; return them, and what they saw in words."""
    size, part = min(batch, len(rows)), task.fit.take(rows)
    steps = max(1, round(epochs * len(rows) / size))
    if settings.augment:
        views = Views(task.encoder, task.source.take(part.examples), settings.seed)
        batches, saw = views.features(task.tap, size, steps), views.protocol
    else:
        batches = sgd_probe.shuffled(part.x, part.known, size, steps, settings.seed)
        saw = {"views": "evaluation crop, kept"}
    return sgd_probe.fit(batches, part.x.shape[1], task.classes, rates, steps), saw


def _scorer(metric: str) -> Callable[[np.ndarray, np.ndarray], float]:
    return lambda outputs, labels: scores.statistics(labels, outputs)[metric](np.ones(len(labels)))


def _one_label(features: Features, solver: str) -> np.ndarray:
    _check_one_label(features.known.ndim == 2, solver)
    return features.known


def _check_one_label(several: bool, solver: str) -> None:
    if several:
        raise UserError(
            f"an image has several labels, and --solver={solver} needs one: use "
            "--solver=lbfgs,sgd,mlp"
        )


def _shortest(value: float) -> str:
    """Write a number in a name so that no other is written alike."""
    return f"{value:g}" if float(f"{value:g}") == value else repr(value)


def _one(weights: logistic.Weights, rate: int) -> logistic.Weights:
    return logistic.Weights(weights.kernel[rate], weights.bias[rate])


def _best(found: Mapping[Any, float]) -> float | None:
    return max(found.values(), default=None)


def _mean(values: np.ndarray) -> scores.Statistic:
    return lambda weights: float(weights @ values / weights.sum())
