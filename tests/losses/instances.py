"""Instance discrimination written out in NumPy, from the paper and what the official code adds."""

from __future__ import annotations

import numpy as np


def compared_with(kind, example, sampled, size):
    """Return the rows that each image is compared with, its own first but in the full softmax."""
    if kind == "softmax":
        return np.tile(np.arange(size), (len(example), 1)), np.asarray(example)
    return np.concatenate([example[:, None], sampled], 1), np.zeros(len(example), int)


def partition(x, bank, example, sampled, temperature):
    """Return the Z that a batch fixes: N times the mean over all rows it is compared with."""
    rows, _ = compared_with("nce", example, sampled, len(bank))
    return np.mean([np.exp(bank[rows[i]] @ x[i] / temperature) for i in range(len(x))]) * len(bank)


def loss(kind, x, bank, example, sampled, temperature, z=None, eps=1e-7):
    """Return the loss, its gradient with respect to x, and how often the own row is nearest."""
    total, gradient, found, n = 0.0, np.zeros_like(x), 0.0, len(x)
    rows, own = compared_with(kind, example, sampled, len(bank))
    for i in range(n):
        some = bank[rows[i]]  # [c, d]
        scores = some @ x[i] / temperature
        found += scores[own[i]] >= max(scores)
        right = np.arange(len(scores)) == own[i]
        if kind == "nce":
            noise = sampled.shape[1] / len(bank)
            p = np.exp(scores) / z
            each = np.where(right, p, noise) / (p + noise + eps)
            total -= np.sum(np.log(each))
            slopes = p / (p + noise + eps) - right
        else:
            p = np.exp(scores) / np.sum(np.exp(scores))
            total -= np.log(p[own[i]])
            slopes = p - right
        gradient[i] = slopes @ some / temperature
    return total / n, gradient / n, found / n


def moved(bank, x, example, momentum):
    """Return the bank after a batch, written row by row, each made of the row before the batch."""
    made = bank.copy()
    for row, one in zip(example, x, strict=True):
        new = momentum * bank[row] + (1 - momentum) * one
        made[row] = new / np.linalg.norm(new)
    return made
