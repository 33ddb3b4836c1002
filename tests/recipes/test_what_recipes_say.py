"""Recipes: published numbers, official flavours, arguments, copies, differences."""

import pytest
from ml_collections import FrozenConfigDict
from recipes.freeze import leaves, resolved
from train import tiny

from simclr_jax import declaration, recipes, records, validation
from simclr_jax.errors import UserError
from simclr_jax.frame import modules
from simclr_jax.train import timetable as timetables

# From the papers' tables and the official README: recipe, argument, images, and what comes of it.
PUBLISHED = [
    ("cifar10", "", 50_000, {"peak": 2.0, "steps": 97657, "warmup": 976, "decay": 1e-4}),
    ("imagenet", "", 1281167, {"peak": 4.8, "steps": 31279, "warmup": 3127, "decay": 1e-4}),
    ("imagenet", "paper,width=4", 1281167, {"steps": 312785, "decay": 1e-6, "peak": 4.8}),
    ("imagenet", "small_batch=1024", 1281167, {"peak": 2.4, "steps": 125114}),
    ("imagenet", "one_gpu", 1281167, {"peak": 4.8, "steps": 31279}),
    ("byol", "imagenet,epochs=40", 1281167, {"peak": 7.2, "steps": 12512, "decay": 1e-6}),
    ("byol", "imagenet,epochs=100", 1281167, {"peak": 7.2, "steps": 31279, "warmup": 3127}),
    ("byol", "imagenet,epochs=300", 1281167, {"peak": 4.8, "steps": 93836, "decay": 1e-6}),
    ("byol", "imagenet", 1281167, {"peak": 3.2, "steps": 312785, "decay": 1.5e-6}),
    ("jigsaw", "imagenet", 1281167, {"peak": 0.05, "steps": 350320, "warmup": 50045}),
    ("relative_patch", "imagenet", 1281167, {"peak": 0.05, "steps": 350320, "decay": 1e-4}),
    ("simsiam", "cifar10", 50_000, {"peak": 0.06, "steps": 78126, "warmup": 0, "decay": 5e-4}),
    ("simsiam", "imagenet", 1281167, {"peak": 0.1, "steps": 250228, "warmup": 0, "decay": 1e-4}),
    ("simsiam", "imagenet,batch=256", 1281167, {"peak": 0.05, "steps": 500456}),
    ("imagenet_v2", "depth=152,width=3,sk", 1281167, {"peak": 6.4, "steps": 250228, "decay": 1e-4}),
]


@pytest.mark.parametrize("name, argument, images, expected", PUBLISHED)
def test_recipes_come_to_the_published_numbers(name, argument, images, expected):
    c = resolved(name, argument)
    validation.validate(c, devices=8)
    plan = timetables.make(c, images)
    found = {
        "peak": plan.peak_rate,
        "steps": plan.total_steps,
        "warmup": plan.warmup_steps,
        "decay": c.optim.weight_decay,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    for part in filter(None, argument.split(",")):
        field, _, value = part.partition("=")
        if field in ("width", "depth"):
            assert c.model[field] == int(value)


def test_a_field_has_a_dotted_name():
    c = recipes.base()
    recipes.put(c, "augment.views.second.crop", False)
    recipes.put(c, "seed", 3)
    recipes.put(c, "data.threads", 2)  # left open in the defaults
    assert (c.augment.views.second.crop, c.seed, c.data.threads) == (False, 3, 2)
    for name in ("augment.views.second.crop", "seed", "data.threads"):
        assert recipes.get(c, name) == recipes.get(c.to_dict(), name)
    for name in ("train.batchsize", "trian.batch_size", "sede"):
        with pytest.raises(KeyError):
            recipes.put(c, name, 1)
        with pytest.raises(KeyError):
            recipes.get(c, name)
    with pytest.raises(TypeError):
        recipes.put(c, "train.dtype", 1)


@pytest.mark.parametrize("part", [None, "data"])
def test_a_copy_of_a_recipe_may_be_changed_and_the_original_not(part):
    c = recipes.base()
    c.data.split = c.data.get_oneway_ref("eval_split")
    frozen = FrozenConfigDict(c.copy_and_resolve_references())
    for original in (c, frozen):
        before = original.to_dict()
        copy = recipes.copied(original[part] if part else original)
        assert copy.to_dict() == (before[part] if part else before)
        data = copy if part else copy.data
        data.eval_split, data.threads = "dev", 3  # one that another follows, and an open one
        assert data.split == "test"
        assert original.to_dict() == before and copy.is_locked


# What the two official programs do, point by point (docs/fidelity.md).
FLAVOURS = {
    "tf1": {"augment.grid": "corner", "eval.probe": False, "optim.rate_in_momentum": False},
    "tf2": {"augment.grid": "half_pixel", "eval.probe": True, "optim.rate_in_momentum": True},
}


@pytest.mark.parametrize("groups", [0, 1, 8])
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_an_official_flavour_sets_what_differs_and_nothing_else(flavour, groups):
    c = recipes.base()
    c.bn.groups, c.augment.brightness_mode, c.loss.scale = groups, "add", "mean"
    recipes.official(c, flavour)
    wanted = FLAVOURS[flavour] | {
        "bn.groups": groups,
        "bn.unbiased_moving": flavour == "tf1",
        "augment.sigma_per": "batch",
        "augment.brightness_mode": "multiply",
        "loss.scale": "sum",
    }
    for name, value in wanted.items():
        assert recipes.get(c, name) == value, name
    changed = records.differences(recipes.base().to_dict(), c.to_dict())
    assert {line.partition(":")[0] for line in changed} <= wanted.keys()
    validation.validate(c, devices=8)
    norm = modules.encoder(c).norm.keywords  # the fused kernel's variance only where it was fused
    assert norm["unbiased_moving"] == (flavour == "tf1" and groups != 1)
    assert resolved("cifar10", f"official={flavour}").augment.grid == wanted["augment.grid"]
    with pytest.raises(UserError, match='official is "tf3"'):
        recipes.official(c, "tf3")


@pytest.mark.parametrize(
    "text, message",
    [
        ("widht=2", 'is "widht" .did you mean "width"'),
        ("width=two", "write width=NUMBER"),
        ("paper=1", "write paper, alone"),
        ("official", "write official=NAME"),
        ("official=", "write official=NAME"),
        ("official=tf3", 'official is "tf3".*tf1, tf2'),
    ],
)
def test_wrong_arguments_of_a_recipe_are_named(text, message):
    with pytest.raises(UserError, match=message):
        resolved("imagenet", text)


def test_differences_name_nested_fields_and_pass_over_what_changes_no_result():
    old, new = tiny.recipe().to_dict(), tiny.recipe().to_dict()
    assert records.differences(old, new) == []
    new["augment"]["views"]["second"]["blur"] = 0.1
    new["train"]["steps"] = 7
    new["log"]["every_steps"] = 1
    new["checkpoint"]["keep"] = 9
    new["data"] |= {"path": "/elsewhere", "threads": 3, "resident": True}
    new["data"] |= {"index": "/elsewhere", "max_bad_fraction": 0.5}
    new["data"] |= {"layout": "splits", "if_changed": "refuse"}
    new["train"]["remat"] = "block"
    new["examples"] = 5
    assert records.differences(old, new) == [
        "augment.views.second.blur: 0.5 -> 0.1",
        "examples: None -> 5",
        "train.steps: 3 -> 7",
    ]


FREE = {
    *("log.every_steps", "checkpoint.every_steps", "checkpoint.keep", "checkpoint.keep_period"),
    *("data.path", "data.threads", "data.resident", "data.max_bad_fraction", "data.index"),
    *("data.layout", "data.if_changed", "data.max_megapixels", "train.remat"),
    "data.eval_gigabytes",
    *("log.to", "log.project"),
}


@pytest.mark.parametrize("method", declaration.known())
def test_a_resumed_run_may_change_what_changes_no_result_and_nothing_else(method):
    old, named = recipes.base(method).to_dict(), set()
    for name, value in leaves(old):
        *groups, field = name.split(".")
        new = recipes.base(method).to_dict()
        group = new
        for part in groups:
            group = group[part]
        group[field] = "another"
        found = records.differences(old, new)
        assert found in ([], [f"{name}: {value} -> another"])
        named |= {name} if found else set()
    assert {name for name, _ in leaves(old)} - named == FREE
