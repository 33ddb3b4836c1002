import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from simclr_jax.errors import UserError
from simclr_jax.evaluate.subsets import few_labels

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


def test_user_errors():
    with pytest.raises(UserError, match=r"class 1 has 2 examples but 3 per class"):
        few_labels([0, 0, 0, 1, 1], 3, seed=0)
    with pytest.raises(UserError, match="labels per class is 0"):
        few_labels([0, 1], 0, seed=0)
