"""What `simclr fields` says of fields, against the source that people read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from simclr_jax import declaration, field_texts, list_fields, recipes, shipped

SOURCE = Path(recipes.__file__).read_text()
DEFAULTS = dict(list_fields.leaves(recipes.base().to_dict()))


@pytest.mark.parametrize("name", DEFAULTS)
def test_every_field_is_explained(name):
    assert len(field_texts.text(name)) > 3


@pytest.mark.parametrize(
    "name, said",
    [
        ("seed", "of initial values, data order and augmentation; in [0, 2^63)"),
        ("data.eval_split", "held out, to be scored on"),  # behind its line
        ("augment.views.second.flip", "probability of this operation; 0 switches it off"),
        ("augment.views.other.size", "side in pixels; None: data.image_size"),
        ("model.depth", "of the ResNet: 10 | 18 | 34 | 50 | 101 | 152 | 200"),  # and its choices
        ("model.stem", "imagenet: 7x7 with stride 2, and pooling | cifar: 3x3, none"),
        ("checkpoint.keep", "the newest so many; 1 or more"),  # and its rule
    ],
)
def test_texts_are_those_beside_the_field(name, said):
    assert field_texts.text(name) == said


def test_a_comment_above_is_whole_and_of_its_own_field():
    above = list(re.finditer(r'^ +# (.+)\n( +# (.+)\n)?( +# .+\n)* +"(\w+)":', SOURCE, re.M))
    assert len(above) > 5
    for match in above:
        name = next(n for n in DEFAULTS if n.endswith(f".{match[5]}"))
        assert match[1] in field_texts.text(name) and (match[3] or "") in field_texts.text(name)
    assert "White" not in field_texts.text("data.max_megapixels")


def test_fields_of_methods_have_their_own_words():
    found = {name: (value, said) for name, value, said in list_fields.of_defaults()}
    for method in declaration.known():
        for field, about in declaration.find(method).fields.items():
            value, said = found[f"{method}.{field}"]
            assert value == about.default and about.about in said and about.rule in said
    assert {*DEFAULTS} < {*found}


@pytest.fixture
def listed(monkeypatch, capsys):
    """Return what the door prints for a recipe and other flags."""

    class Flags:
        config, prefix, changed = None, "", False

    def call(recipe=None, prefix="", changed=False, argument=""):
        flags = Flags()
        if recipe:
            scope: dict = {}
            exec((shipped.home() / f"{recipe}.py").read_text(), scope)
            flags.config = scope["get_config"](*[argument] if argument else [])
        flags.prefix, flags.changed = prefix, changed
        monkeypatch.setattr(list_fields, "FLAGS", flags)
        list_fields.main()
        return capsys.readouterr().out

    return call


def test_a_recipe_is_compared_with_the_defaults_of_its_method(listed):
    out = listed("digits", changed=True)
    names = {line.partition("=")[0] for line in out.splitlines() if line[0] != " "}
    assert "optim.base_lr" in names and "optim.momentum" not in names
    assert "[default 0.3]" in out
    out = listed("byol", prefix="byol.")
    assert "byol.momentum=0.95" in out and "[default 0.996]" in out and "optim" not in out


def test_a_pipeline_has_the_fields_of_its_runs(listed):
    out = listed("v2_pipeline_digits", prefix="runs.pretrain.model.", argument="draws=1")
    names = [line.partition("=")[0] for line in out.splitlines() if line[0] != " "]
    assert names == [f"runs.pretrain.{name}" for name in DEFAULTS if name.startswith("model.")]


def test_what_there_is_not_is_said(listed):
    with pytest.raises(list_fields.errors.UserError, match=r'"optm" \(did you mean "optim"\?\)'):
        listed(prefix="optm")
    with pytest.raises(list_fields.errors.UserError, match="--changed needs a recipe"):
        listed(changed=True)


def test_a_bare_argument_is_the_recipe():
    assert list_fields.arguments(["x", "digits:a", "--prefix=optim"]) == [
        *("x", "--config=digits:a", "--prefix=optim"),
    ]
