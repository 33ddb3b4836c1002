"""Whether two models differ by more than chance on the same test examples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from simclr_jax.errors import UserError, choose
from simclr_jax.evaluate import scores

LINEAR = ("top-1", "top-5", "mean per class")  # sums over examples
RANKED = ("mAP", "11-point mAP")
SAMPLES = 100_000  # of the linear ones, as in the transfer table of SimCLR (appendix B.8)
RANKED_SAMPLES = 2_000


def permutation_test(
    first: Mapping[str, Any],
    second: Mapping[str, Any],
    metric: str = "top-1",
    seed: int = 0,
    samples: int | None = None,
) -> dict[str, float]:
    """Test in a paired, two-sided permutation test whether two models score alike.

    Were they alike, it would not matter which of the two gave which answer to an example: the
    answers to each example are swapped or not, at random. For mAP the scores of each model are
    first replaced by their ranks within a class, which changes no mAP, so that swapped scores are
    on one scale.

    Args:
        first, second: of each model, `labels`, `examples` (numbers `[m]` that name the examples,
            in any order) and `predictions` `[m]` or `scores` `[m, C]`, as results files hold them.
        metric: a name in `LINEAR` or `RANKED`.
        seed: of the swaps.
        samples: random swaps, by default `SAMPLES` or `RANKED_SAMPLES`.

    Returns:
        `difference` (first minus second), `p` and `samples`. `p` counts the observed answers as
        one of the samples, so that it is never 0 (Phipson & Smyth 2010).

    Raises:
        UserError: the models were not judged on the same examples, with the same labels, or
            `metric` cannot be computed from what they gave.
    """
    choose("metric", metric, (*LINEAR, *RANKED))
    labels, ours, theirs = _paired(first, second)
    if (labels.ndim == 2) != (metric in RANKED):
        kind = "several labels" if labels.ndim == 2 else "one label"
        raise UserError(f'metric is "{metric}" but an example has {kind}: see `scores.summary`')
    generator = np.random.Generator(np.random.Philox(seed))
    if metric in LINEAR:
        samples = SAMPLES if samples is None else samples
        observed, drawn = _sign_flips(labels, ours, theirs, metric, samples, generator)
    else:
        samples = RANKED_SAMPLES if samples is None else samples
        observed, drawn = _swaps(labels, ours, theirs, metric, samples, generator)
    # Sums of the same numbers in another order are as extreme.
    extreme = int(np.count_nonzero(np.abs(drawn) >= abs(observed) - 1e-12))
    return {"difference": float(observed), "p": (extreme + 1) / (samples + 1), "samples": samples}


def _paired(
    first: Mapping[str, Any], second: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return labels, and the outputs of both models, in the order of the examples' numbers."""
    found = []
    for model in (first, second):
        order = np.argsort(model["examples"], kind="stable")
        outputs = model["scores"] if "scores" in model else model["predictions"]
        found.append([np.asarray(x)[order] for x in (model["examples"], model["labels"], outputs)])
    (examples, labels, ours), (others, their_labels, theirs) = found
    if not np.array_equal(examples, others):
        shared = len(np.intersect1d(examples, others))
        raise UserError(
            f"the models were judged on {len(examples)} and {len(others)} examples, {shared} of "
            "them the same: a paired test needs the same examples"
        )
    if not np.array_equal(labels, their_labels):
        raise UserError("the models were judged on examples of different labels: use one data set")
    return labels, ours, theirs


def _sign_flips(
    labels: np.ndarray,
    ours: np.ndarray,
    theirs: np.ndarray,
    metric: str,
    samples: int,
    generator: np.random.Generator,
) -> tuple[float, np.ndarray]:
    """Return the observed difference of a sum over examples, and those after random swaps."""
    k = 5 if metric == "top-5" else 1
    difference = scores.top_k_hits(ours, labels, k) - scores.top_k_hits(theirs, labels, k) * 1.0
    share = np.full(len(labels), float(len(labels)))
    if metric == "mean per class":
        _, place, counts = np.unique(labels, return_inverse=True, return_counts=True)
        share = len(counts) * counts[place].astype(np.float64)
    drawn = np.zeros(samples)
    # A swap turns the sign of a difference; how many signs are plus among equal ones is binomial.
    for size in np.unique(share):
        unlike = np.count_nonzero(difference[share == size])
        if unlike:
            drawn += (2 * generator.binomial(unlike, 0.5, samples) - unlike) / size
    return float(np.sum(difference / share)), drawn


def _swaps(
    labels: np.ndarray,
    ours: np.ndarray,
    theirs: np.ndarray,
    metric: str,
    samples: int,
    generator: np.random.Generator,
) -> tuple[float, np.ndarray]:
    """Return the observed difference of a score of rankings, and those after random swaps."""
    # The answers of both, sorted once; a model has those to which it gives weight 1.
    from scipy.stats import rankdata  # takes seconds to import

    answers = np.concatenate([rankdata(ours, axis=0), rankdata(theirs, axis=0)])
    statistic = scores.statistics(np.concatenate([labels, labels]), answers)[metric]

    def difference(swapped: np.ndarray) -> float:
        weights = np.concatenate([~swapped, swapped]).astype(np.float64)
        return statistic(weights) - statistic(1 - weights)

    drawn = [difference(generator.integers(2, size=len(labels)) == 1) for _ in range(samples)]
    return difference(np.zeros(len(labels), bool)), np.array(drawn)
