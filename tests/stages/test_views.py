"""Groups of views: what a recipe's fields make of them, and what is wrong with a recipe."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from simclr_jax import recipes, validation
from simclr_jax.errors import UserError
from simclr_jax.fields import _check_view
from simclr_jax.stages import build, views


def recipe(stage="pretrain", **fields):
    """Return a small recipe; `second__size=16` sets a field of a view."""
    c = recipes.base()
    c.data.image_size, c.train.batch_size, c.stage = 32, 16, stage
    if stage != "pretrain":
        recipes.crop_and_flip(c)
        c.eval.probe = c.eval.knn = False
    for name, value in fields.items():
        view, field = name.split("__")
        c.augment.views[view][field] = value
    return c


def test_policies_come_by_group_and_name_each_as_often_as_its_copies():
    c = recipe(first__group="whole", first__blur=0.1, second__group="parts", second__blur=0.2)
    with c.unlocked():
        c.augment.views.a, c.augment.views.z = recipes.view(), recipes.view()
    c.augment.views.a.update(group="whole", blur=0.3, copies=2)
    c.augment.views.z.update(group="parts", blur=0.4, size=16)
    c.augment.views.second.size = 16
    made = build.policies(c)
    assert list(made) == ["parts", "whole"]
    assert [policy.blur for policy in made["parts"]] == [0.2, 0.4]
    assert [policy.blur for policy in made["whole"]] == [0.3, 0.3, 0.1]
    assert {policy.size for policy in made["parts"]} == {16}
    assert {policy.size for policy in made["whole"]} == {32}


def test_every_field_of_a_view_reaches_its_policy():
    fields = {"solarize": 0.2, "solarize_threshold": 0.25, "grayscale_first": True}
    c = recipe(**{f"second__{name}": value for name, value in fields.items()})
    first, second = build.policies(c)["views"]
    for name, value in fields.items():
        assert getattr(second, name) == value
        assert getattr(first, name) == recipes.view()[name]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"second__solarize": 1.2}, r"augment.views.second.solarize is 1.2: .*\[0, 1\]"),
        ({"first__solarize_threshold": -0.1}, r"first.solarize_threshold is -0.1: .*\[0, 1\]"),
        ({"first__copies": 0}, "augment.views.first.copies is 0: it must be 1 or more"),
        ({"second__size": 0}, "augment.views.second.size is 0: it must be 1 or more"),
        ({"second__size": 16}, "second.size is 16, but augment.views.first, .*views, has 32"),
        ({"first__size": 16}, "second.size is 32, but augment.views.first, .*views, has 16"),
        ({"second__group": ""}, 'augment.views.second.group is "": give a name'),
        ({"second__group": "a/b"}, 'augment.views.second.group is "a/b": give a name'),
        ({"second__group": "1st"}, 'augment.views.second.group is "1st": give a name'),
    ],
)
def test_a_wrong_field_is_named_in_one_line(fields, said):
    c = recipe(**fields)
    with pytest.raises(UserError, match=said) as raised:
        for name in c.augment.views:
            _check_view(c, f"augment.views.{name}.")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("fields", [{"first__copies": 2}, {"first__group": "crops"}])
def test_labels_are_learned_from_one_view(fields):
    validation.validate(recipe("finetune"), devices=1)
    with pytest.raises(UserError, match="stage finetune looks at one"):
        validation.validate(recipe("finetune", **fields), devices=1)


def test_a_size_of_its_own_may_be_that_of_the_group_and_may_wait_for_the_images():
    validation.validate(recipe(second__size=32), devices=1)
    validation.validate(recipe(first__size=16, second__size=16), devices=1)
    c = recipe(second__size=16)
    with c.unlocked():
        c.data.image_size = recipes.placeholder(int)
    validation.validate(c, devices=1)


def test_crop_and_flip_leaves_one_plain_view():
    c = recipe(first__solarize=0.5, first__copies=3, first__size=16, first__group="parts")
    recipes.crop_and_flip(c)
    ((policy,),) = build.policies(c).values()
    assert list(build.policies(c)) == ["views"] and policy.size == 32
    assert policy.jitter == policy.grayscale == policy.blur == policy.solarize == 0
    assert policy.crop and policy.flip == 0.5


def test_a_pair_is_of_the_largest_views_that_there_are_two_of():
    def of(count, size):
        return np.broadcast_to(np.arange(count)[:, None, None, None], (3, count, size, size, 1))

    made = {"a": of(4, 16), "b": of(2, 24), "c": of(1, 32)}
    first, second = views.pair(made)
    assert first.shape == second.shape == (3, 24, 24, 1)
    assert (first == 0).all() and (second == 1).all()
    (alone,) = views.pair({"c": made["c"]})
    assert alone.shape == (3, 32, 32, 1)


def test_views_made_by_the_host_are_only_converted():
    c = recipe(second__group="other")
    c.train.dtype = "bfloat16"
    batch = {
        "views/other": np.full((2, 1, 32, 32, 3), 0.25, np.float32),
        "views/views": np.full((2, 1, 32, 32, 3), 0.5, np.float32),
    }
    made = views.view_maker(c)(batch)
    assert {group: float(x[0, 0, 0, 0, 0]) for group, x in made.items()} == {
        "other": 0.25,
        "views": 0.5,
    }
    assert {x.dtype for x in made.values()} == {jnp.dtype("bfloat16")}
