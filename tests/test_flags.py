"""What flags of all doors hold, by a table of all of them: paths at home, numbers that are some."""

from __future__ import annotations

import functools
import importlib
import math
import sys
import types
from pathlib import Path

import absl
import numpy as np
import pytest
from absl import flags
from PIL import Image

import simclr_jax
from simclr_jax import command, declaration, entry, errors, fields, flag_kinds, recipes, validation
from simclr_jax.data import sources
from simclr_jax.errors import UserError
from simclr_jax.judging import linear_probe
from simclr_jax.planning import devices
from simclr_jax.stages import labels

PACKAGE = Path(simclr_jax.__file__).parent
DOORS = tuple(command.DOORS.values())

PATHS = {
    "main": ("workdir", "data"),
    "linear_probe": ("checkpoint", "data", "data_dir", "labels", "cache"),
    "transfer": ("checkpoint", "data", "data_dir", "cache", "workdir"),
    "embed": ("checkpoint", "out", "data", "data_dir", "cache"),
    "search": ("embeddings", "query", "out", "images", "checkpoint"),
    "report": ("checkpoint", "out"),
    "convert": ("source", "workdir"),
    "export": ("checkpoint", "out"),
    "plan": ("json",),
    "pack": ("out", "verify"),
    "doctor": ("data", "workdir"),
    "list_recipes": (),
    "list_fields": (),
}
# Of each number what is good, and what is not beside what never is.
NUMBERS = {
    "main": {
        "processes": ("1", "0"),
        "process": ("0", "-1"),
        "heartbeat_secs": ("1", "0"),
        "extend_lr": ("0.1", "0"),
        "extend_warmup": ("0", "-1"),
        "cpu_devices": ("1", "0"),
    },
    "linear_probe": {
        "sgd_epochs": ("0.5", "0"),
        "sgd_batch_size": ("1", "0"),
        "mlp_epochs": ("0.5", "0"),
        "mlp_units": ("1", "0"),
        "seed": ("4294967295", "4294967296"),
        "max_bad_fraction": ("1", "1.01"),
    },
    "transfer": {
        "seed": ("0", "4294967296"),
        "max_bad_fraction": ("0", "1.01"),
        "finetune_steps": ("1", "0"),
        "finetune_batch_size": ("1", "0"),
    },
    "embed": {},
    "search": {"k": ("1", "0"), "duplicates": ("1", "0"), "seed": ("7", "-1")},
    "report": {},
    "convert": {"image_size": ("1", "0"), "tap": ("0", "101")},
    "export": {},
    "plan": {"devices": ("1", "0"), "images": ("0", "-1"), "classes": ("0", "-1")},
    "doctor": {
        "secs": ("0.5", "0"),
        "processes": ("1", "0"),
        "process": ("0", "-1"),
        "heartbeat_secs": ("1", "0"),
    },
    "pack": {"side": ("8", "7"), "quality": ("100", "101"), "workers": ("1", "0")},
    "list_recipes": {},
    "list_fields": {},
}
# Text; what of it is made of numbers is read by a function of its own, below.
TEXT = {
    "main": ("resume", "extend_to", "profile_steps", "coordinator"),
    "linear_probe": (
        *("split", "eval_split", "validation_split", "solver", "tap", "name", "knn", "sgd_rates"),
        *("mlp_rates", "mlp_decays", "weights"),
    ),
    "transfer": ("sets", "protocol", "finetune_rates", "finetune_decays", "weights"),
    "embed": ("split", "tap", "weights"),
    "search": (),
    "report": (),
    "convert": ("dataset", "input", "prefix"),
    "export": ("format", "tap", "weights", "preprocess", "loads_in"),
    "plan": ("device", "device_memory"),
    "pack": ("format", "splits"),
    "doctor": ("coordinator",),
    "list_recipes": (),
    "list_fields": ("prefix",),
}
NEVER = ("nan", "inf", "-inf", "1e400", "-1", "9" * 400, "9" * 5000, "x", "", "0x1")


@functools.cache
def flags_of(door):
    """Return the flags that a door defines; doors share names, so each has a place of its own."""
    values, stub = flags.FlagValues(), types.ModuleType("flags")
    for name in dir(flags):
        thing = getattr(flags, name)
        here = name.startswith("DEFINE")
        setattr(stub, name, functools.partial(thing, flag_values=values) if here else thing)
    stub.FLAGS = values
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(absl, "flags", stub)
        patch.delitem(sys.modules, f"simclr_jax.{door}", raising=False)
        patch.setattr("ml_collections.config_flags.DEFINE_config_file", lambda *_, **__: None)
        importlib.import_module(f"simclr_jax.{door}")
        sys.modules.pop(f"simclr_jax.{door}", None)
    return values


def test_all_doors_are_here():
    found = {path.stem for path in PACKAGE.glob("*.py") if "entry.run(main)" in path.read_text()}
    assert found == {*DOORS}, "the table is command.DOORS"


@pytest.mark.parametrize("door", DOORS)
def test_all_flags_are_in_the_table(door):
    values = flags_of(door)
    said = {*PATHS[door], *NUMBERS[door], *TEXT[door]}
    switches = {name for name in values if values[name].boolean}
    assert {*values} - switches == said, "put it into PATHS, NUMBERS or TEXT"


def given(door, *arguments):
    values = flags_of(door)
    values.unparse_flags()
    for name in values:
        values[name].unparse()
    values(["door", *arguments])
    return values


CASES = [(door, name) for door in DOORS for name in PATHS[door]]


@pytest.mark.parametrize("door, name", CASES)
def test_a_path_may_begin_at_home(door, name, monkeypatch):
    monkeypatch.setenv("HOME", "/some/body")

    def read(text):
        found = given(door, f"--{name}={text}")[name].value
        return found[0] if isinstance(found, list) else found

    assert read("~/a/b.npz@7") == "/some/body/a/b.npz@7" and read("~") == "/some/body"
    for plain in ("a/~b", "gs://bucket//x", "tfds:cifar10", "none", "a~", "./x/"):
        assert read(plain) == plain
    with pytest.raises(flags.Error, match=f"--{name}=~zz/x: there is no home of ~zz"):
        read("~zz/x")


@pytest.mark.parametrize("door, name", [("linear_probe", "checkpoint"), ("transfer", "data")])
def test_so_may_each_of_several(door, name, monkeypatch):
    monkeypatch.setenv("HOME", "/h")
    assert given(door, f"--{name}=~/a,b,~/c")[name].value == ["/h/a", "b", "/h/c"]
    found = given("search", "--query=~/a.jpg,~/b.jpg", "--query=c,d")["query"].value
    assert found == ["/h/a.jpg,/h/b.jpg", "c,d"]


@pytest.mark.parametrize("door, name", [(door, name) for door in DOORS for name in NUMBERS[door]])
def test_a_number_is_a_number_within_its_limits(door, name):
    good, bad = NUMBERS[door][name]
    assert given(door, f"--{name}={good}")[name].value == float(good)
    for text in (bad, *NEVER):
        with pytest.raises(flags.Error, match=f"--{name}=.*: it must be a .*number") as raised:
            given(door, f"--{name}={text}")
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e400", "-1", "0", "x", ""])
def test_numbers_with_commas_are_some_as_well(text):
    with pytest.raises(UserError, match="--knn has"):
        linear_probe.neighbours(f"5:{text}")
    with pytest.raises(UserError, match="--sgd_rates has"):
        errors.number("--sgd_rates", text, above=0)


@pytest.mark.parametrize("text", ["nan", "-1GB", "0", "9" * 400, "1e400GB", "infGB"])
def test_memory_is_an_amount(text):
    with pytest.raises(UserError, match="--device_memory is"):
        devices.parse_bytes(text)


@pytest.mark.parametrize("equals", ["--config=", "-config="])
def test_the_recipe_may_be_at_home(monkeypatch, equals):
    monkeypatch.setenv("HOME", "/h")
    assert entry._with_recipe([f"{equals}~/a.py:width=2"]) == [f"{equals}/h/a.py:width=2"]
    for other in ("--config.data.path=~/a", "--workdir=~/config=x", "--config=a.py", "--config"):
        assert entry._with_recipe([other]) == [other]


# Recipes ------------------------------------------------------------------------------------------


def numbers(tree, prefix=""):
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from numbers(value, f"{prefix}{name}.")
        elif isinstance(value, float):
            yield f"{prefix}{name}"


FLOATS = [
    (method, name)
    for method in declaration.known()
    for name in numbers(recipes.base(method).to_dict())
    if method == declaration.DEFAULT or name.startswith(f"{method}.")
]


@pytest.mark.parametrize("method, name", FLOATS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_field_is_no_number(method, name, value):
    c = recipes.base(method)
    if name.startswith(("distill.", "finetune.", "labels.")):
        c.stage = "distill"
        recipes.crop_and_flip(c)
        c.distill.teacher, c.eval.probe, c.eval.knn = "x", False, False
    validation.validate(c, 1)
    recipes.put(c, name, value)
    with pytest.raises(UserError, match=name.rpartition(".")[2]):
        validation.validate(c, 1)


def test_fields_that_are_paths_may_begin_at_home_but_not_of_nobody():
    for name in fields.PATHS:
        c = recipes.base()
        with pytest.raises(UserError, match=rf"{name} is ~zz/x, but there is no home of ~zz"):
            recipes.put(c, name, "~zz/x")
            validation.validate(c, 1)
        recipes.put(c, name, "~/x")
        fields.check_paths(c)


@pytest.mark.parametrize("source", ["memory", "folder", "tfrecord"])
def test_images_may_lie_at_home(tmp_path, monkeypatch, source):
    monkeypatch.setenv("HOME", str(tmp_path))
    pixels = np.zeros((4, 8, 8, 3), np.uint8)
    if source == "memory":
        np.savez(tmp_path / "images", images=pixels)
    elif source == "folder":
        (tmp_path / "images").mkdir()
        for i in range(4):
            Image.fromarray(pixels[i]).save(tmp_path / "images" / f"{i}.png")
    else:
        (tmp_path / "images").mkdir()
    data = recipes.base().data
    data.source, data.path = source, "~/images" + (".npz" if source == "memory" else "")
    if source == "tfrecord":  # that it was looked for there is enough
        with pytest.raises(UserError, match=f"data.path={tmp_path}/images has no file such as"):
            sources.open_splits(data)
    else:
        assert len(sources.open_splits(data)[0]) == 3


def test_a_list_of_names_may_lie_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "few.txt").write_text("image 1\n")
    source = sources.Images(np.zeros((3, 8, 8, 3), np.uint8), np.arange(3), 3)
    rows = labels.allowed("~/few.txt", source.labels, np.arange(3), source, 0)
    assert rows.tolist() == [1]


def test_kinds_say_what_they_take():
    assert flag_kinds.Number(0, 1).syntactic_help == "a finite number, 0 or more and at most 1"
    assert flag_kinds.Whole(1).syntactic_help == "a whole number, 1 or more"
    assert flag_kinds.Number().parse(3) == 3.0 and flag_kinds.Whole().parse(3) == 3
