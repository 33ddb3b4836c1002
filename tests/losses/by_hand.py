"""Losses of two views, anchor by anchor in float64 from the papers, without matrices."""

from __future__ import annotations

import math

import numpy as np


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def mean(values, weights=None) -> float:
    """Return the weighted mean over images of nonzero weight."""
    weights = np.ones(len(values)) if weights is None else np.asarray(weights)
    return float(np.sum(np.asarray(values) * weights) / np.count_nonzero(weights))


def info_nce(q, k, temperature, weights=None, normalize=True):
    q, k = (unit(q), unit(k)) if normalize else (q, k)
    losses = []
    for i in range(len(q)):
        scores = [math.exp(q[i] @ key / temperature) for key in k]
        losses.append(-math.log(scores[i] / sum(scores)))
    return mean(losses, weights)


def cpc(context, z, predictors, over="candidates", weights=None):
    of_steps = []
    for ahead, predictor in zip(z, predictors, strict=True):
        losses = []
        for i in range(len(context)):
            if over == "candidates":
                scores = [math.exp(other @ predictor @ context[i]) for other in ahead]
            else:
                scores = [math.exp(ahead[i] @ predictor @ other) for other in context]
            losses.append(-math.log(scores[i] / sum(scores)))
        of_steps.append(mean(losses, weights))
    return float(np.mean(of_steps))


def over_anchors(loss, z1, z2, scale, weights=None, normalize=True, views=(0, 1)):
    """Return what `loss(positive, others)` is of the views of all images, added up by the scale.

    Args:
      loss: from an anchor's similarity with its partner, and those with the views of all other
        images, to a number; it may look at `itself`, the anchor's with itself, and `image`.
    """
    z = [unit(z1), unit(z2)] if normalize else [z1, z2]
    n, means = len(z1), []
    for view in views:
        losses = []
        for i in range(n):
            anchor = z[view][i]
            others = [anchor @ z[v][j] for v in (0, 1) for j in range(n) if j != i]
            positive = anchor @ z[1 - view][i]
            losses.append(loss(positive, others, itself=anchor @ anchor, image=i))
        means.append(mean(losses, weights))
    return sum(means) / (1 if scale == "sum" else len(views))


def decoupled(
    z1, z2, temperature, sigma=None, scale="sum", weights=None, leak=None, normalize=True, **which
):
    """`leak` is added to the logits of the anchor's own two views; None leaves them out."""
    pairs = np.sum(unit(z1) * unit(z2) if normalize else z1 * z2, 1)
    attention = np.ones(len(z1))
    if sigma is not None:
        attention = 2 - len(z1) * np.exp(pairs / sigma) / np.sum(np.exp(pairs / sigma))

    def loss(positive, others, itself, image):
        logits = [s / temperature for s in others]
        if leak is not None:
            logits += [s / temperature + leak for s in (itself, positive)]
        top = max(logits)
        spread = top + math.log(sum(math.exp(logit - top) for logit in logits))
        return spread - attention[image] * positive / temperature

    return over_anchors(loss, z1, z2, scale, weights, normalize, **which)


def debiased(
    z1, z2, temperature, tau_plus=0.1, beta=0.0, scale="mean", weights=None, normalize=True
):
    def loss(positive, others, **_):
        scores = np.exp(np.array(others) / temperature)
        hardness = scores**beta
        count = len(scores)
        summed = np.sum(hardness / np.mean(hardness) * scores)
        estimate = (summed - tau_plus * count * math.exp(positive / temperature)) / (1 - tau_plus)
        estimate = max(estimate, count * math.exp(-1 / temperature))
        right = math.exp(positive / temperature)
        return -math.log(right / (right + estimate))

    return over_anchors(loss, z1, z2, scale, weights, normalize)


def joined(term, positive, others, negatives, margin):
    if negatives == "semi_hard":
        near = [s for s in others if positive - margin < s < positive]
        return term(max(near)) if near else 0.0
    total = sum(map(term, others))
    return total if negatives == "sum" else total / len(others)


def margin_loss(z1, z2, margin, negatives="mean", scale="mean", weights=None, normalize=True):
    def loss(positive, others, **_):
        term = lambda s: max(s - positive + margin, 0.0)  # noqa: E731
        return joined(term, positive, others, negatives, margin)

    return over_anchors(loss, z1, z2, scale, weights, normalize)


def nt_logistic(
    z1, z2, temperature, negatives="mean", margin=None, scale="mean", weights=None, normalize=True
):
    def loss(positive, others, **_):
        log_sigmoid = lambda x: -math.log1p(math.exp(-x))  # noqa: E731
        term = lambda s: -log_sigmoid(-s / temperature)  # noqa: E731
        right = -log_sigmoid(positive / temperature)
        return right + joined(term, positive, others, negatives, margin)

    return over_anchors(loss, z1, z2, scale, weights, normalize)
