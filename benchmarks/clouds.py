"""Features that overlap, and the two programs that draw planes between them: for the benchmarks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from sklearn.linear_model import LogisticRegression

from simclr_jax.evaluate import logistic


def clouds(count: int, dim: int, classes: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return features `[count, dim]` and labels, those to learn from and as many to test on."""
    random = np.random.RandomState(0)
    centres = random.normal(size=(classes, dim)) * 2 / np.sqrt(dim)
    labels = random.randint(0, classes, 2 * count)
    x = (centres[labels] + random.normal(size=(2 * count, dim))).astype(np.float32)
    return np.split(x, 2), np.split(labels, 2)


def fits(x: np.ndarray, y: np.ndarray, classes: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Return our fit and scikit-learn's."""

    def here() -> logistic.Weights:
        return jax.block_until_ready(logistic.fit(x, y, classes, 1 / len(x), tolerance=1e-4))

    def there() -> LogisticRegression:
        return LogisticRegression(C=1.0, tol=1e-4, max_iter=1000).fit(x, y)

    return here, there
