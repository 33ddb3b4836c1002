"""Noisy labelled images, and what can be said of them without the package: views, scores.

A quarter of the labels is wrong, the classes overlap and are of unequal size, some images have no
label and some cannot be read: no score is near 1, and each is another one if it is of other images,
other labels or another setting.
"""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from simclr_jax.data.decode import BadImage
from simclr_jax.data.sources import NO_LABEL, Images
from simclr_jax.frame import modules

CLASSES = 4
SIDE = 10  # pixels; the tiny recipe looks at 8


@dataclasses.dataclass(frozen=True)
class Noisy:
    """A split some of whose images cannot be read, though their labels are known."""

    images: Images
    unreadable: tuple[int, ...] = ()

    channels, multi_label, class_names = 3, False, ()

    @property
    def classes(self):
        return self.images.classes

    @property
    def labels(self):
        return self.images.labels

    def __len__(self):
        return len(self.images)

    def fingerprint(self):
        return self.images.fingerprint()

    def name(self, example):
        return f"{example}.jpg"

    def example(self, example):
        if example in self.unreadable:
            raise BadImage("truncated")
        return self.images.example(example)

    def take(self, rows):
        bad = tuple(i for i, row in enumerate(rows) if row in self.unreadable)
        return Noisy(self.images.take(rows), bad)

    @property
    def counted(self):
        """Return the rows that may be scored: readable, with a label."""
        known = np.flatnonzero(self.labels != NO_LABEL)
        return np.setdiff1d(known, self.unreadable)


def pixels(truth, seed, side=SIDE, signal=30.0, noise=25.0):
    """Draw an image for each of some classes: its colours, those of a half, and noise of both."""
    random = np.random.RandomState(0)
    colour, half = random.normal(size=(2, CLASSES, 1, 1, 3))
    random = np.random.RandomState(seed)
    cast, tilt = random.normal(size=(2, len(truth), 1, 1, 3))
    upper = np.where(np.arange(side) < side // 2, 1.0, -1.0)[:, None, None]
    shown = signal * (colour[truth] + 0.7 * cast + (half[truth] + 0.7 * tilt) * upper)
    drawn = 128 + shown + noise * random.normal(size=(len(truth), side, side, 3))
    return np.clip(np.rint(drawn), 0, 255).astype(np.uint8)


def split(seed, counts=(46, 30, 24, 18), unlabelled=0, unreadable=0, flips=0.2, classes=CLASSES):
    """Draw a split of so many images of each class, of which some lack a label or are damaged.

    Wrong labels are any of `classes`.
    """
    random = np.random.RandomState(seed)
    truth = random.permutation(np.repeat(np.arange(CLASSES), counts))
    flipped = random.rand(len(truth)) < flips
    labels = np.where(flipped, random.randint(0, classes, len(truth)), truth).astype(np.int32)
    rows = random.permutation(len(truth))
    labels[rows[:unlabelled]] = NO_LABEL
    bad = tuple(sorted(rows[unlabelled : unlabelled + unreadable].tolist()))
    return Noisy(Images(pixels(truth, seed), labels, classes), bad)


# What the network is shown ------------------------------------------------------------------------


def keys(distance, a):
    """Keys' cubic kernel."""
    d = abs(distance)
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * (d**3 - 5 * d**2 + 8 * d - 4) if d < 2 else 0.0


def resizing(length, out, grid):
    """Return the matrix `[out, length]` that resizes a row of pixels, tap by tap."""
    scale, matrix = length / out, np.zeros((out, length))
    for i in range(out):
        centre = i * scale if grid == "corner" else (i + 0.5) * scale - 0.5
        if grid == "antialias":
            wide = max(scale, 1.0)
            matrix[i] = [keys((j - centre) / wide, -0.5) for j in range(length)]
            matrix[i] /= matrix[i].sum()
            continue
        left = int(np.floor(centre))
        fraction = np.rint((centre - left) * 1024) / 1024
        for offset in range(-1, 3):
            weight, at = keys(offset - fraction, -0.75 if grid == "corner" else -0.5), left + offset
            if grid == "corner":
                matrix[i, min(max(at, 0), length - 1)] += weight
            elif 0 <= at < length:
                matrix[i, at] += weight
        matrix[i] /= matrix[i].sum()
    return matrix


def evaluation_view(image, size, grid="corner"):
    """Return the central 87.5 % of an image, or all of it for views of up to 32 pixels."""
    height, width = image.shape[:2]
    side = round((0.875 if size > 32 else 1.0) * min(height, width))
    top, left = (height - side + 1) // 2, (width - side + 1) // 2
    cut = image[top : top + side, left : left + side] / 255
    matrix = resizing(side, size, grid)
    return np.clip(np.einsum("oh,hwc,pw->opc", matrix, cut, matrix), 0, 1)


def evaluation_views(source, rows, size=8, grid="corner"):
    """Return the evaluation views of some images of a split, float32 `[n, size, size, 3]`."""
    shown = [evaluation_view(source.images.pixels[row], size, grid) for row in rows]
    return np.stack(shown).astype(np.float32)


def features(config, variables, images):
    """Return `h` and the layers of the head after it, by a plain application of the modules."""
    variables = jax.device_get(variables)

    def part(name):
        return {kind: tree[name] for kind, tree in variables.items() if name in tree}

    @jax.jit
    def apply(encoder, head, images):
        h = modules.encoder(config).apply(encoder, images, train=False)["h"]
        return modules.projection_head(config).apply(head, h, train=False)

    hiddens = apply(part("encoder"), part("head"), images)
    return [np.asarray(x, np.float64) for x in hiddens]


# Scores -------------------------------------------------------------------------------------------


def nearest(bank, labels, queries, k, temperature):
    """Return the classes that the `k` nearest by cosine vote for with `exp(cosine / T)`."""
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (bank, queries)]
    found = []
    for similarity in unit[1] @ unit[0].T:
        rows = np.argsort(-similarity)[:k]
        votes = np.exp(similarity[rows] / temperature)
        found.append(np.argmax([votes[labels[rows] == c].sum() for c in range(CLASSES)]))
    return np.array(found)


def few(labels, count, seed):
    """Return rows of so many examples of each class."""
    random = np.random.RandomState(seed)
    members = [np.flatnonzero(labels == c) for c in np.unique(labels)]
    return np.sort(np.concatenate([random.permutation(rows)[:count] for rows in members]))


def fold(labels, seed, count=5):
    """Return the fold of each example: shuffled, and dealt out class by class."""
    shuffled = np.random.RandomState(seed).permutation(len(labels))
    found = np.empty(len(labels), int)
    for turn, row in enumerate(sorted(shuffled, key=lambda row: labels[row])):
        found[row] = turn % count
    return found


def softmax(logits):
    """Return the probabilities of logits `[n, C]`, float64."""
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def regression(x, labels, penalty):
    """Minimise the summed cross entropy + penalty / 2 |kernel|^2 by Newton's method."""
    if len(x) < x.shape[1]:  # the kernel lies in the span of the rows: a smaller problem
        basis = np.linalg.qr(x.T)[0]
        found = regression(x @ basis, labels, penalty)
        return np.vstack([basis @ found[:-1], found[-1:]])
    x = np.hstack([x, np.ones((len(x), 1))])
    width, onehot = x.shape[1], np.eye(CLASSES)[labels]
    weigh = penalty * np.tile(np.append(np.ones(width - 1), 0), CLASSES)
    found = np.zeros(CLASSES * width)  # class by class

    def value(w):
        p = softmax(x @ w.reshape(CLASSES, width).T)
        return -np.sum(np.log(p[onehot == 1] + 1e-300)) + weigh @ w**2 / 2

    for _ in range(40):
        p = softmax(x @ found.reshape(CLASSES, width).T)
        gradient = ((p - onehot).T @ x).ravel() + weigh * found
        if np.linalg.norm(gradient) < 1e-7 * len(x):
            break
        curvature = np.einsum("nc,cd->ncd", p, np.eye(CLASSES)) - np.einsum("nc,nd->ncd", p, p)
        rows = np.einsum("ncd,nj->cndj", curvature, x).reshape(CLASSES, len(x), -1)
        hessian = np.concatenate([x.T @ row for row in rows])
        hessian += np.diag(weigh + 1e-9)
        step, size = np.linalg.solve(hessian, gradient), 1.0
        while size > 1e-6 and value(found - size * step) > value(found):
            size /= 2
        found = found - size * step
    return found.reshape(CLASSES, width).T  # the bias is the last row


def probed(bank, labels, queries, penalties, folds=range(5), seed=0):
    """Return the guesses of a linear probe with the penalty that does best on the folds."""
    centre = bank.mean(0)
    unit = np.sqrt(np.mean((bank - centre) ** 2))
    bank, queries = (bank - centre) / unit, (queries - centre) / unit
    place = fold(labels, seed)

    def guesses(rows, penalty, others):
        kernel = regression(bank[rows], labels[rows], penalty)
        return np.argmax(others @ kernel[:-1] + kernel[-1], axis=1)

    def score(penalty):
        return np.mean(
            [
                np.mean(guesses(place != k, penalty, bank[place == k]) == labels[place == k])
                for k in folds
            ]
        )

    best = max(penalties, key=lambda penalty: (score(penalty), penalty))
    return guesses(np.ones(len(labels), bool), best, queries)


def outputs(config, variables, images, part, tap=0):
    """Return the logits of the linear layer `part` on a layer of the head."""
    dense = jax.device_get(variables["params"][part]["dense"])
    x = features(config, variables, images)[tap]
    return x @ np.float64(dense["kernel"]) + dense["bias"]


def top(logits, labels, k=1):
    """Return how often the label is among the `k` largest logits."""
    return float(
        np.mean([y in np.argsort(-row)[:k] for row, y in zip(logits, labels, strict=True)])
    )


def cross_entropy(logits, labels):
    """Return the cross entropy of each row, float64, nats."""
    return -np.log(softmax(np.float64(logits))[np.arange(len(labels)), labels])
