"""Which examples a few-label evaluation draws: as many of each class, by the seed alone."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from simclr_jax.errors import UserError
from simclr_jax.evaluate.subsets import few_labels, share_of_labels

PINNED = [7, 8, 10, 13, 14, 21, 27, 32]
LABELS = np.random.RandomState(0).choice([0, 1, 3, 7], 400, p=[0.4, 0.3, 0.2, 0.1])


@hypothesis.given(st.integers(1, 12), st.integers(0, 2**32 - 1))
@hypothesis.settings(max_examples=30, deadline=None)
def test_balanced_distinct_and_nested(per_class, seed):
    chosen = few_labels(LABELS, per_class, seed)
    assert len(set(chosen)) == len(chosen)
    classes, counts = np.unique(LABELS[chosen], return_counts=True)
    np.testing.assert_array_equal(classes, [0, 1, 3, 7])
    np.testing.assert_array_equal(counts, per_class)
    assert set(chosen) <= set(few_labels(LABELS, per_class + 1, seed))


def test_the_choice_is_pinned_and_depends_on_the_seed():
    labels = np.arange(40) % 4
    np.testing.assert_array_equal(few_labels(labels, 2, seed=0), PINNED)
    assert list(few_labels(labels, 2, seed=1)) != PINNED


def test_every_example_can_be_chosen():
    labels = np.arange(30) % 3
    seen = {i for seed in range(40) for i in few_labels(labels, 2, seed)}
    assert seen == set(range(30))


@pytest.mark.parametrize("share", [0.001, 0.013, 0.1, 0.33, 1.0])
@pytest.mark.parametrize("seed", [0, 5])
def test_a_share_is_of_each_class_and_at_least_one(share, seed):
    chosen = share_of_labels(LABELS, share, seed)
    assert (np.diff(chosen) > 0).all()  # each once
    for label in (0, 1, 3, 7):
        members = np.flatnonzero(np.equal(LABELS, label))
        own = np.intersect1d(chosen, members)
        assert len(own) == max(1, round(share * len(members)))
    generator, expected = np.random.RandomState(seed), []
    for label in (0, 1, 3, 7):
        members = generator.permutation(np.flatnonzero(np.equal(LABELS, label)))
        expected += members[: max(1, round(share * len(members)))].tolist()
    np.testing.assert_array_equal(chosen, sorted(expected))
    assert set(chosen) <= set(share_of_labels(LABELS, min(1, share + 0.1), seed))
    if share < 1:
        assert set(chosen) != set(share_of_labels(LABELS, share, seed + 1))


def test_shares_that_cannot_be():
    for share in (0, -0.1, 1.01):
        with pytest.raises(UserError, match="the share of labels is"):
            share_of_labels(LABELS, share, 0)


def test_user_errors():
    with pytest.raises(UserError, match=r"class 1 has 2 examples but 3 per class"):
        few_labels([0, 0, 0, 1, 1], 3, seed=0)
    with pytest.raises(UserError, match="labels per class is 0"):
        few_labels([0, 1], 0, seed=0)
