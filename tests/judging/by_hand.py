"""What solvers should find, by scikit-learn and float64 NumPy, from features and labels alone."""

from __future__ import annotations

import functools
import math

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, balanced_accuracy_score

PENALTIES = tuple(10.0 ** (-6 + 11 * i / 44) for i in range(45))  # of SimCLR, appendix B.8


def top_1(outputs, labels):
    return float(np.mean(outputs.argmax(axis=1) == labels))


def mean_per_class(outputs, labels):
    return float(balanced_accuracy_score(labels, outputs.argmax(axis=1)))


def mean_average_precision(outputs, labels):
    """Labels are 1, 0 and -1, which does not count."""
    found = []
    for scores, shown in zip(outputs.T, labels.T, strict=True):
        if (shown == 1).any():
            found.append(average_precision_score(shown[shown >= 0], scores[shown >= 0]))
    return float(np.mean(found))


def eleven_points(outputs, labels):
    """Return VOC's mean, over classes and recalls 0, 0.1, ..., 1, of the best precision there."""
    found = []
    for scores, shown in zip(outputs.T, labels.T, strict=True):
        positives, best = np.sum(shown == 1), [0.0] * 11
        for threshold in np.unique(scores) if positives else ():
            above = shown[(scores >= threshold) & (shown >= 0)]
            hits = int(np.sum(above == 1))
            for i in range(11):
                if len(above) and 10 * hits >= i * positives:
                    best[i] = max(best[i], hits / len(above))
        found += [np.mean(best)] if positives else []
    return float(np.mean(found))


def folds(labels, count, seed):
    """Deal the examples of a shuffled pile out to folds, class after class."""
    dealt, fold = 0, np.full(len(labels), -1)
    pile = np.random.RandomState(seed).permutation(len(labels))
    kinds = labels if np.ndim(labels) == 1 else np.zeros(len(labels), int)
    for kind in sorted(set(kinds.tolist())):
        for row in pile:
            if kinds[row] == kind:
                fold[row], dealt = dealt % count, dealt + 1
    return fold


def cross_validation(labels, seed):
    fold = folds(labels, 5, seed)
    return [(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(5)]


def regression(x, labels, penalty, classes):
    """Return the function from features to logits of a regression fitted by Newton's method."""
    if np.ndim(labels) == 2:
        each = []
        for column in labels.T:
            peer = LogisticRegression(C=1 / penalty, solver="newton-cholesky", tol=1e-9)
            known = column >= 0
            if len(set(column[known])) < 2:  # nothing to learn
                each.append(lambda x: np.zeros(len(x)))
            else:
                each.append(peer.fit(x[known], column[known]).decision_function)
        return lambda x: np.stack([one(x) for one in each], axis=1)
    peer = LogisticRegression(C=1 / penalty, solver="newton-cholesky", tol=1e-9, max_iter=300)
    peer.fit(x, labels)
    kernel, bias = np.zeros((x.shape[1], classes)), np.full(classes, -np.inf)
    kernel[:, peer.classes_], bias[peer.classes_] = peer.coef_.T, peer.intercept_
    return lambda x: x @ kernel + bias


def choose_penalty(x, labels, classes, splits, score, penalties=PENALTIES, **others):
    """Return the score of each penalty on the examples that choose, and an answer.

    Features are centred and divided by one number; the answer, from a penalty and features to
    logits, is fitted on all examples.

    Args:
      splits: rows to fit on, rows to choose on.
      score: from logits and labels.
      penalties: to try.
      others: features and labels on which the same fits are scored as well.

    Returns:
      By name, "choose" and `others`, the score of each penalty; and the answer.
    """
    origin = x.mean(axis=0, dtype=np.float64)
    unit = math.sqrt(np.mean((x - origin) ** 2))
    found = {name: dict.fromkeys(penalties, 0.0) for name in ("choose", *others)}
    for penalty in penalties:
        for a, b in splits:
            outputs = regression((x[a] - origin) / unit, labels[a], penalty, classes)
            for name, (new, own) in {"choose": (x[b], labels[b]), **others}.items():
                found[name][penalty] += score(outputs((new - origin) / unit), own) / len(splits)

    def answer(penalty, new):
        whole = regression((x - origin) / unit, labels, penalty, classes)
        return whole((new - origin) / unit)

    return found, answer


def best(scores):
    """Return what scores best; of equals the greatest."""
    return max(key for key, score in scores.items() if score >= max(scores.values()) - 1e-12)


def sgd(x, labels, classes, rate, batch, steps, seed):
    """Train with Nesterov momentum, a cosine and new orders, and return kernel and bias."""
    x, batch = x.astype(np.float64), min(batch, len(x))
    orders = np.random.RandomState(seed)
    rows = np.concatenate([orders.permutation(len(x)) for _ in range(1 + steps * batch // len(x))])
    stream = ((x[r], labels[r]) for r in (rows[i * batch : (i + 1) * batch] for i in range(steps)))
    return descend(stream, x.shape[1], classes, rate, steps)


def descend(batches, dim, classes, rate, steps):
    weights = [np.zeros((dim, classes)), np.zeros(classes)]
    velocities = [np.zeros_like(w) for w in weights]
    for step, (x, labels) in enumerate(batches):
        outputs = x @ weights[0] + weights[1]
        if np.ndim(labels) == 2:
            error = (1 / (1 + np.exp(-outputs)) - (labels == 1)) * (labels >= 0) / len(x)
        else:
            likely = np.exp(outputs - outputs.max(axis=1, keepdims=True))
            likely /= likely.sum(axis=1, keepdims=True)
            error = (likely - np.eye(classes)[labels]) / len(x)
        now = rate * len(x) / 256 * (1 + math.cos(math.pi * step / steps)) / 2
        for i, gradient in enumerate((x.T @ error, error.sum(axis=0))):
            velocities[i] = 0.9 * velocities[i] + gradient
            weights[i] = weights[i] - now * (gradient + 0.9 * velocities[i])
    return weights


def cosines(bank, queries):
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (bank * 1.0, queries * 1.0))
    return b @ a.T


def nearest(similarity, labels, k, temperature):
    """Classify by votes; of classes with equally many the one of the nearest neighbour wins."""
    found = []
    for row in similarity:
        votes: dict[int, float] = {}
        for i in np.argsort(-row, kind="stable")[:k]:
            vote = 1.0 if temperature is None else math.exp((row[i] - 1) / temperature)
            votes[int(labels[i])] = votes.get(int(labels[i]), 0.0) + vote
        found.append(max(votes, key=votes.__getitem__))
    return np.array(found)


def same_as_nearest(predictions, bank, labels, queries, k, temperature=None):
    """Check classes by neighbours, but for those that float32 may not decide; return these."""
    similarity, random = cosines(bank, queries), np.random.RandomState(0)
    k = min(k, len(bank))
    expected, sure = nearest(similarity, labels, k, temperature), np.ones(len(queries), bool)
    for _ in range(3):
        rounded = similarity + random.uniform(-3e-7, 3e-7, similarity.shape)
        sure &= nearest(rounded, labels, k, temperature) == expected
    np.testing.assert_array_equal(predictions[sure], expected[sure])
    assert len(predictions) == len(expected) and sure.mean() > 0.9
    return expected


def same_as_likeliest(predictions, outputs, margin=1e-3):
    """Check that classes are those of the highest outputs, but for those that are nearly equal."""
    first, second = -np.sort(-outputs, axis=1)[:, :2].T
    sure = first - second > margin * np.abs(outputs[np.isfinite(outputs)]).max()
    np.testing.assert_array_equal(predictions[sure], outputs.argmax(axis=1)[sure])
    assert len(predictions) == len(outputs) and sure.mean() > 0.9


def recall(x, labels, k):
    """Return the share of images with one of their class among the k most similar others."""
    hits = []
    for i, row in enumerate(cosines(x, x)):
        others = [j for j in np.argsort(-row) if j != i]
        hits.append(any(labels[j] == labels[i] for j in others[:k]))
    return np.array(hits)


def interval(statistic, count, seed, resamples=1000):
    """Return the 95 % percentile interval of a statistic of rows, drawn with replacement."""
    generator = np.random.Generator(np.random.Philox(seed))
    found = [statistic(generator.integers(count, size=count)) for _ in range(resamples)]
    return np.quantile(found, [0.025, 0.975])


def intervals(labels, predictions, seed):
    """Return value, low and high of top-1 and of the mean per class."""
    right = labels == predictions

    def per_class(rows):
        kinds = np.unique(labels[rows])
        return np.mean([right[rows][labels[rows] == kind].mean() for kind in kinds])

    measured = {"top-1": lambda rows: right[rows].mean(), "mean per class": per_class}
    everything = np.arange(len(labels))
    return {
        name: dict(
            zip(
                ("value", "low", "high"),
                (of(everything), *interval(of, len(labels), seed)),
                strict=True,
            )
        )
        for name, of in measured.items()
    }


@functools.cache
def centres(classes, dim):
    return np.random.RandomState(99).normal(size=(classes, dim))
