"""The recipe of a run: edited, lost, swapped or a stranger's, it never gives another number."""

from __future__ import annotations

import copy
import json
import re
import shutil

import numpy as np
import pytest
from etils import epath
from train import tiny

from simclr_jax import documents, recipes
from simclr_jax.errors import UserError
from simclr_jax.train import saved
from simclr_jax.train.checkpoints import Checkpoints
from simclr_jax.train.workdir import open_workdir, recipe_before

RECORD = tiny.recipe().to_dict() | {"images": ["some", "others"]}


def write(workdir, record, sealed=True, step=7):
    """Write a run of this recipe, or of a version that kept it in `config.json` alone."""
    checkpoints = Checkpoints(workdir / "checkpoints", recipe=record if sealed else None)
    checkpoints.save(step, {"step": np.int32(step)})
    checkpoints.close()
    (workdir / "config.json").write_text(json.dumps(record))
    return workdir


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write(epath.Path(tmp_path_factory.mktemp("run")), RECORD)


@pytest.fixture(scope="module")
def older(tmp_path_factory):
    return write(epath.Path(tmp_path_factory.mktemp("older")), RECORD, sealed=False)


def edited(**fields):
    record = copy.deepcopy(RECORD)
    for name, value in fields.items():
        *groups, field = name.split("__")
        recipes.get(record, ".".join(groups))[field] = value if groups else None
    return record


def nested(depth):
    return "[" * depth + "]" * depth


MALFORMED = {
    "no such depth": (edited(model__depth=17), 'model.depth is "17".*: choose one of'),
    "text for a number": (
        edited(model__depth="10"),
        "model.depth is 10: it must be a whole number",
    ),
    "a number for text": (edited(augment__grid=3), "augment.grid is 3: it must be text"),
    "a whole number for yes or no": (
        edited(eval__knn=1),
        "eval.knn is 1: it must be true or false",
    ),
    "yes for a number": (edited(train__batch_size=True), "train.batch_size is True: it must be a"),
    "null": (edited(bn__momentum=None), "bn.momentum is None: it must be a number"),
    "no such grid": (edited(augment__grid="cubic"), 'augment.grid is "cubic": choose one of'),
    "no such source": (edited(data__source="web"), 'data.source is "web"'),
    "too large": (edited(data__image_size=100_000), "data.image_size is 100000: it must be 1 to"),
    "negative": (edited(model__width=-1.0), "model.width is -1.0: it must be greater than 0"),
    "no such method": (RECORD | {"method": "simclrr"}, 'method is "simclrr"'),
    "no name of a method": (
        RECORD | {"method": ["simclr"]},
        r"method is \['simclr'\]: it must be a name",
    ),
    "no name of a module": (
        RECORD | {"method": ".x"},
        r"method is \.x, which is no dotted name of a module: give one, or any of .*byol, ",
    ),
    "a module of no name": (RECORD | {"method": "a..b"}, r"method is a\.\.b, which is no dotted"),
    "converted, and no more": (RECORD | {"converted": True}, "converted is True: it must be a gro"),
    "converted by another program": (
        RECORD | {"converted": {"classifier_tap": "h"}},
        r"converted is \{'classifier_tap': 'h'\}: it must be a group of fields, and classifier_tap",
    ),
    "a field of another program": (RECORD | {"lr": 0.1}, 'recipes have no field "lr"'),
    "in a group": (edited(bn__axis=0), 'recipes have no field "bn.axis"'),
    "in a view": (edited(augment__views__first__zoom=2), 'no field "augment.views.first.zoom"'),
    "text for a group": (RECORD | {"model": "resnet"}, "model is resnet: it must be a group"),
    "a view no group can have": (
        edited(augment__views={"a.b": recipes.view().to_dict()}),
        'augment.views has "a.b": no view has a . in its name',
    ),
    "text for views": (edited(augment__views="two"), "augment.views is two: it must be a group"),
    "a list for bn": (RECORD | {"bn": [1]}, r"bn is \[1\]: it must be a group"),
    "a list": ([1, 2], "Expected `object`, got `array`"),
    "text": ("recipe", "Expected `object`, got `str`"),
}
TEXTS = {
    "deep": (nested(100_000), "nested too deeply|not JSON"),
    "a huge number": ('{"seed": ' + "9" * 5000 + "}", "out of range"),
    "no UTF-8": (b"\xff\xfe{}", "not UTF-8"),
    "empty": ("", "not JSON"),
}
ALL = {name: (json.dumps(record), said) for name, (record, said) in MALFORMED.items()} | TEXTS


@pytest.mark.parametrize("kind", ["run", "older"])
@pytest.mark.parametrize("name", ALL)
def test_a_config_that_is_none_is_one_line_for_readers_and_for_who_goes_on(
    tmp_path, request, kind, name
):
    workdir = shutil.copytree(request.getfixturevalue(kind), tmp_path / "run")
    text, said = ALL[name]
    (workdir / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    for read in (saved.read, saved.describe, recipe_before):
        with pytest.raises(UserError, match=said) as raised:
            read(str(workdir))
        assert f"{workdir}/config.json" in str(raised.value)
        assert "\n" not in str(raised.value) and len(str(raised.value)) < 600


# What the checkpoint says -------------------------------------------------------------------------

DECIDING = {
    "augment__grid": ("corner", "half_pixel"),
    "data__image_size": (8, 9),
    "model__width": (0.0625, 1.0),
    "model__input": ("rgb", "normalised"),
    "bn__epsilon": (1e-05, 1e-4),
    "eval__probe_tap": (0, 1),
    "seed": (0, 1),
    "images": (["some", "others"], ["some"]),
}


@pytest.mark.parametrize("field", DECIDING)
def test_no_field_that_decides_anything_can_be_another_one_than_in_the_checkpoint(
    run, older, tmp_path, field
):
    before, now = DECIDING[field]
    record = edited(**{field: now}) if "__" in field else RECORD | {field: now}
    said = re.escape(f"{field.replace('__', '.')}: {before} -> {now}")
    workdir = shutil.copytree(run, tmp_path / "run")
    (workdir / "config.json").write_text(json.dumps(record))
    for read in (saved.read, saved.describe):
        with pytest.raises(UserError, match=f"checkpoint 7 was trained by another.*{said}"):
            read(str(workdir))
    with (
        pytest.raises(UserError, match=f"checkpoints/7 was trained by another.*{said}"),
        open_workdir(str(workdir), record, "auto", keep=1, keep_period=None),
    ):
        pass  # by a recipe that was edited alike
    with pytest.raises(UserError, match=re.escape(f"{now} -> {before}")):
        go_on(workdir)
    # Of a run of an earlier version only the file knows.
    workdir = shutil.copytree(older, tmp_path / "older")
    (workdir / "config.json").write_text(json.dumps(record))
    assert saved.read(str(workdir)).record == record


def go_on(workdir, record=RECORD, resume="auto"):
    """Open the workdir of a run as the run does, and return what it says and what is lost."""
    with open_workdir(str(workdir), record, resume, keep=3, keep_period=None) as opened:
        return opened


def test_what_a_resumed_run_may_change_may_differ(run, tmp_path):
    workdir = shutil.copytree(run, tmp_path / "run")
    moved = edited(data__path="/elsewhere", log__every_steps=7, checkpoint__keep=9)
    go_on(workdir, moved)
    assert saved.read(str(workdir)).record == moved


def test_a_checkpoint_of_before_a_field_agrees_with_its_default(tmp_path):
    record = copy.deepcopy(RECORD)
    del record["memory"], record["model"]["input"]
    record["bn"] = {"momentum": 0.9, "epsilon": 1e-5, "sync": True, "unbiased_moving": False}
    workdir = write(epath.Path(tmp_path), record)
    go_on(workdir)
    assert saved.read(str(workdir)).record == RECORD
    with pytest.raises(UserError, match=r"memory.size: 0 -> 8"):
        go_on(workdir, edited(memory__size=8))


@pytest.mark.parametrize("what", ["config.json", "checkpoints"])
def test_what_two_runs_have_swapped_is_noticed(run, tmp_path, what):
    one = shutil.copytree(run, tmp_path / "one")
    other = write(epath.Path(tmp_path / "other"), edited(head__dim=6))
    for path in (one, other):
        (path / what).rename(tmp_path / f"{path.name} {what}")
    for path, source in ((one, "other"), (other, "one")):
        (tmp_path / f"{source} {what}").rename(path / what)
    for path in (one, other):
        with pytest.raises(
            UserError, match=r"head.dim: \d -> \d.*put back the config.json and the"
        ):
            saved.read(str(path))
    with pytest.raises(UserError, match=r"head.dim"):
        go_on(one)


def test_a_lost_config_is_that_of_the_checkpoint(run, older, tmp_path):
    workdir = shutil.copytree(run, tmp_path / "run")
    (workdir / "config.json").unlink()
    assert saved.read(str(workdir)).record == RECORD == recipe_before(workdir)
    assert not (workdir / "config.json").exists()  # readers write nothing
    with pytest.raises(UserError, match=r"head.dim: 5 -> 6"):
        go_on(workdir, edited(head__dim=6))
    go_on(workdir)
    assert documents.read(workdir / "config.json", dict) == RECORD
    assert "config.json was gone: it is restored" in (workdir / "log.txt").read_text()
    workdir = shutil.copytree(older, tmp_path / "older")
    (workdir / "config.json").unlink()
    with pytest.raises(UserError, match=r"no config.json: give the whole workdir"):
        saved.read(str(workdir))
    with pytest.raises(UserError, match=r"no config.json: give another --workdir"):
        go_on(workdir)


# Names --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("{run}@" + "9" * 400, "there is no whole checkpoint 9+ in .*steps there: 7"),
        ("{run}@" + "9" * 5000, "there is no whole checkpoint 9+ in .*steps there: 7"),
        ("{run}@8", "there is no whole checkpoint 8 in"),
        ("{run}" + "9" * 400, "is the path of no file .File name too long.: name another"),
        ("x://y", "begins with x://, which is no bucket that is known"),
        ("file:///tmp/x", "begins with file://.*: name a file on this machine by its path alone"),
        ("{run}/config.json", "holds no checkpoints"),
        ("~nobody-of-this-name/run", "is the path of no file"),
        ("a\0b", "is the path of no file"),
    ],
)
def test_a_name_that_is_no_runs_is_one_line(run, name, said):
    for read in (saved.read, saved.describe):
        with pytest.raises(UserError, match=said) as raised:
            read(name.format(run=run))
        assert raised.value.code == 1 and "\n" not in str(raised.value)
