"""Losses of labelled rows in NumPy, float64, row by row as they are told; no loss of ours is used.

Rows are `z` `[v, n, d]`, v views of n images; `labels` `[n]`, -1 for none, None where each image is
a class of its own.
"""

from __future__ import annotations

import math

import numpy as np


def unit(z, axis=-1):
    return z / np.linalg.norm(z, axis=axis, keepdims=True)


def rows(z, labels):
    """Yield view, image, label and embedding of each row that has a label."""
    for view, images in enumerate(z):
        for image, row in enumerate(images):
            label = image if labels is None else labels[image]
            if label != -1:
                yield view, image, label, row


def distance(a, b, kind):
    if kind == "angular":
        return max(1 - float(unit(a) @ unit(b)), 0.0)
    square = float(np.sum((a - b) ** 2))
    return square if kind == "squared-L2" else math.sqrt(square)


def supervised_contrastive(z, is_positive, temperature, base, anchors="all"):
    """`is_positive(i, j)` says whether views of image j are positives of views of image i."""
    everyone = [(v, i) for v in range(len(z)) for i in range(z.shape[1])]
    losses = []
    for v, i in everyone if anchors == "all" else everyone[: z.shape[1]]:
        logits = {(w, j): z[v, i] @ z[w, j] / temperature for w, j in everyone if (w, j) != (v, i)}
        every = math.log(sum(map(math.exp, logits.values())))
        found = [every - logit for (_, j), logit in logits.items() if is_positive(i, j)]
        losses.append(temperature / base * np.mean(found) if found else 0.0)
    return float(np.mean(losses))


def soft_nearest_neighbour(z, labels, temperature, kind, epsilon, t=1.0):
    losses = []
    everyone = list(rows(z, labels))
    for v, i, label, row in everyone:
        near = {
            (w, j, other): math.exp(-distance(row, column, kind) * t / temperature)
            for w, j, other, column in everyone
            if (w, j) != (v, i)
        }
        same = sum(f for (*_, other), f in near.items() if other == label)
        losses.append(-math.log(epsilon + same / (epsilon + sum(near.values()))))
    return float(np.mean(losses))


def apart(z, labels, kind):
    """Yield for each row its distances to its positives, and to its negatives."""
    everyone = list(rows(z, labels))
    for v, i, label, row in everyone:
        others = [(distance(row, r, kind), o) for w, j, o, r in everyone if (w, j) != (v, i)]
        yield [d for d, o in others if o == label], [d for d, o in others if o != label]


def semi_hard(z, labels, margin, kind):
    costs = []
    for positives, negatives in apart(z, labels, kind):
        for d in positives:
            farther = [n for n in negatives if n > d]
            negative = min(farther) if farther else max(negatives, default=0.0)
            costs.append(max(margin + d - negative, 0.0))
    return float(np.mean(costs))


def hard(z, labels, margin, kind):
    costs = []
    for positives, negatives in apart(z, labels, kind):
        far = max(positives, default=0.0)
        gap = far - min(negatives, default=far)
        costs.append(math.log(1 + math.exp(gap)) if margin is None else max(margin + gap, 0.0))
    return float(np.mean(costs))


def all_pairs(z, labels, margin, factor):
    same, different = [], []
    for positives, negatives in apart(z, labels, "L2"):
        same += [factor * d**2 for d in positives]
        different += [factor * max(margin - d, 0) ** 2 for d in negatives]
    return float((np.mean(same) + np.mean(different)) / 2)


def false_negatives(scores, own, top_k, threshold):
    """Return the places of the highest `scores` above a threshold that are not in `own`."""
    order = sorted((k for k in range(len(scores)) if k not in own), key=lambda k: -scores[k])
    return [k for k in order[:top_k] if scores[k] > threshold]


def false_negative_cancellation(z, temperature, top_k, threshold, cancel, keys=None, memory=()):
    """With `keys` `[v, n, d]`, they and the rows of `memory` are the candidates."""
    views, n = z.shape[:2]
    scoring = z if keys is None else keys
    candidates = [row for images in scoring for row in images] + list(memory)
    total = 0.0
    for i in range(n):
        own = [w * n + i for w in range(views)]
        scores = [max(scoring[w, i] @ c for w in range(views)) for c in candidates]
        false = false_negatives(scores, own, top_k, threshold)
        for v in range(views):
            logits = [z[v, i] @ c / temperature for c in candidates]
            out = {own[v]} | (set(false) if cancel == "elimination" else set())
            every = math.log(sum(math.exp(s) for k, s in enumerate(logits) if k not in out))
            found = [k for k in own if k != own[v]] + (false if cancel == "attraction" else [])
            total += every - float(np.mean([logits[k] for k in found]))
    return 2 * total / (views * n)


def proto_nce(queries, clusterings):
    """Of (prototypes, concentrations, clusters of the images, sampled clusters) each."""
    losses = []
    for prototypes, concentration, assigned, negatives in clusterings:
        chosen = [*assigned, *negatives]
        for query, positive in zip(queries, assigned, strict=True):
            logits = [query @ prototypes[c] / concentration[c] for c in chosen]
            own = query @ prototypes[positive] / concentration[positive]
            losses.append(math.log(sum(map(math.exp, logits))) - own)
    return float(np.mean(losses))
