"""No shipped recipe and no default changes without its text, which a review then shows."""

from __future__ import annotations

import difflib
import re

import pytest
from recipes import freeze

from simclr_jax import recipes, validation
from simclr_jax.pipeline import recipe as pipeline
from simclr_jax.pipeline import run as pipelines
from simclr_jax.stages.inherit import inherit

NAMES = (freeze.DEFAULTS, *freeze.shipped())


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_as_it_was_frozen(name):
    path = freeze.FROZEN / f"{name}.txt"
    kept = path.read_text().splitlines() if path.exists() else []
    found = freeze.text(name).splitlines()
    diff = difflib.unified_diff(kept, found, f"frozen {name}", f"{name} now", lineterm="", n=1)
    assert kept == found, "\n".join([f"if this is meant: {freeze.COMMAND}", *diff])


def test_every_recipe_is_frozen_and_no_text_is_left_over():
    assert {path.stem for path in freeze.FROZEN.glob("*.txt")} == set(NAMES)
    assert freeze.VARIANTS.keys() == set(freeze.shipped()), "say in VARIANTS how to freeze it"


@pytest.mark.parametrize("name", freeze.VARIANTS)
def test_every_argument_of_a_recipe_is_frozen(name, monkeypatch):
    known, read = {}, recipes.arguments

    def spied(text, **defaults):
        known.update(defaults)
        return read(text, **defaults)

    monkeypatch.setattr(recipes, "arguments", spied)
    freeze.resolved(name)
    given = {item.partition("=")[0] for text in freeze.VARIANTS[name] for item in text.split(",")}
    assert given - {""} == known.keys()
    if "official" in known:
        flavours = set(re.findall(r"official=(\w+)", " ".join(freeze.VARIANTS[name])))
        assert flavours == set(recipes.FLAVOURS)


ALL = [(name, argument) for name, arguments in freeze.VARIANTS.items() for argument in arguments]


@pytest.mark.parametrize("name, argument", ALL)
def test_a_recipe_is_valid_with_any_of_its_arguments(name, argument):
    c = freeze.resolved(name, argument)
    if c.stage == pipeline.STAGE:
        pipelines.validate(c, devices=8)
        return
    if c.stage == "distill":
        c.distill.teacher = "runs/teacher"
    # What it leaves to the run it starts from is as in one with a head to tap.
    c, _ = inherit(c, before=recipes.base().to_dict())
    validation.validate(c, devices=8)


def test_the_defaults_hold_every_field_of_every_method():
    text = (freeze.FROZEN / "defaults.txt").read_text()
    first = text.split("\n\n")[0].splitlines()
    assert len(first) == 1 + len(dict(freeze.leaves(recipes.base())))
    assert "byol.momentum = 0.996" in text and "optim.base_lr = 0.3" in first
