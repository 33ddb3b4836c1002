"""A checkpoint of a stranger, whose manifest agrees with itself: one line, and at once."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from train import tiny

from simclr_jax import documents
from simclr_jax.errors import UserError
from simclr_jax.train import manifest, saved
from simclr_jax.train.checkpoints import Checkpoints
from simclr_jax.train.workdir import recipe_before

RECORD = tiny.recipe().to_dict() | {"images": ["some", "others"]}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two steps, never to be changed: copy it."""
    workdir = tmp_path_factory.mktemp("run")
    checkpoints = Checkpoints(workdir / "checkpoints", recipe=RECORD)
    for step in (6, 7):
        checkpoints.save(step, {"a": np.arange(9.0)})
    checkpoints.close()
    (workdir / "config.json").write_text(json.dumps(RECORD))
    return workdir


@pytest.fixture
def workdir(run, tmp_path):
    def too_long(*_):
        raise AssertionError("it waits")

    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(20)
    yield Path(shutil.copytree(run, tmp_path / "run"))
    signal.alarm(0)


def forge(workdir, change, step=7):
    """Change a manifest as somebody who can compute its digest."""
    path = workdir / "checkpoints" / str(step) / "manifest.json"
    record = json.loads(path.read_text())
    del record["digest"]
    change(record)
    path.write_text(json.dumps({"digest": manifest._digest(record), **record}))


def leaf(**fields):
    return lambda workdir: forge(workdir, lambda record: record["leaves"]["a"].update(fields))


def place(make):
    return lambda workdir: make(workdir / "checkpoints" / "7" / "x")


STRANGE = {
    "no dtype": (leaf(dtype="nonsense"), "a cannot be an array nonsense"),
    "a dtype with a program in it": (leaf(dtype="(2,3)f4"), r"a cannot be an array \(2,3\)f4"),
    "objects": (leaf(dtype="object"), "a cannot be an array object"),
    "a negative shape": (leaf(shape=[-1]), r"a cannot be an array float64\[-1\]"),
    "more than there can be": (leaf(shape=[10**13, 10**13]), r"a cannot be an array float64"),
    "another shape": (leaf(shape=[3, 3]), "it cannot be read|a is float64"),
    "a name in another": (
        lambda w: forge(w, lambda r: r["leaves"].update({"a/b": r["leaves"]["a"]})),
        "it cannot be read",
    ),
    "no arrays": (lambda w: forge(w, lambda r: r["leaves"].clear()), "it cannot be read|only in"),
    "a list for a recipe": (
        lambda w: forge(w, lambda r: r["about"].update(recipe=[1])),
        "of another program",
    ),
    "a pipe": (place(os.mkfifo), "x is no file"),
    "a device": (place(lambda path: path.symlink_to("/dev/zero")), "x is no file"),
    "all of the disk": (place(lambda path: path.symlink_to("/")), "x is no file"),
    "itself": (place(lambda path: path.symlink_to(path.parent)), "x is no file"),
}


@pytest.mark.parametrize("name", STRANGE)
def test_what_no_checkpoint_can_be_is_passed_over_and_said(name, workdir, caplog):
    make, said = STRANGE[name]
    make(workdir)
    assert saved.read(str(workdir)).step == 6
    (line,) = [r.getMessage() for r in caplog.records if "is skipped" in r.getMessage()]
    assert f"{workdir}/checkpoints/7 is skipped: " in line and "\n" not in line
    assert re.search(said, line), line


def test_an_array_that_no_memory_holds_is_said(workdir):
    leaf(shape=[10**13])(workdir)
    with pytest.raises(UserError, match=r"checkpoints/7 claims more .*float64.: free some"):
        saved.read(str(workdir))


def test_a_link_to_a_file_is_that_file_and_one_that_leads_nowhere_is_nothing(workdir):
    """As in a cache of the Hugging Face hub, where each file is a link."""
    step = workdir / "checkpoints" / "7"
    for number, path in enumerate([p for p in step.rglob("*") if p.is_file()]):
        path.rename(workdir / f"blob-{number}")
        path.symlink_to(workdir / f"blob-{number}")
    (step / "x").symlink_to("nowhere")
    assert saved.read(str(workdir)).step == saved.describe(str(workdir)).step == 7


def edited(group, **fields):
    record = copy.deepcopy(RECORD)
    record[group].update(fields)
    return record


RECIPES = {
    "no such depth": (edited("model", depth=17), 'model.depth is "17"'),
    "negative": (edited("model", width=-1.0), "model.width is -1.0: it must be greater"),
    "a field of another program": (RECORD | {"lr": 1}, 'no field "lr"'),
    "text for a group": (RECORD | {"model": "resnet"}, "model is resnet: it must be a group"),
}


@pytest.mark.parametrize("config", ["kept", "removed"])
@pytest.mark.parametrize("name", RECIPES)
def test_the_recipe_in_a_checkpoint_is_held_to_types_and_ranges_too(name, config, workdir):
    record, said = RECIPES[name]
    for step in (6, 7):
        forge(workdir, lambda r: r["about"].update(recipe=record), step)
    reads = [saved.read, saved.describe]
    if config == "removed":
        (workdir / "config.json").unlink()
        reads.append(recipe_before)
    for read in reads:
        with pytest.raises(UserError, match=said) as raised:
            read(str(workdir))
        assert "checkpoint" in str(raised.value) and "\n" not in str(raised.value)


# What is older than what was saved ---------------------------------------------------------------


def test_what_is_passed_over_is_said_by_whoever_reads_and_by_whoever_only_asks_which(
    workdir, caplog
):
    """A run that starts from another, or has it for a teacher, asks first and reads then."""
    documents.write(workdir / "saved.json", {"step": 7})
    (workdir / "checkpoints" / "7" / "_METADATA").write_text("x")
    for read in (saved.read, saved.describe, saved.newest):
        caplog.clear()
        assert str(read(str(workdir))) == f"{workdir}@6"
        skipped, older = (record.getMessage() for record in caplog.records)
        assert "checkpoints/7 is skipped: _METADATA" in skipped
        assert older == f"{workdir}: step 6 is read, though step 7 was saved later"
    caplog.clear()
    assert saved.describe(f"{workdir}@6").step == 6
    assert not caplog.records
    with pytest.raises(UserError, match="there is no whole checkpoint 7 in"):
        saved.describe(f"{workdir}@7")


def test_where_none_is_whole_one_line_says_so_and_what_is_wrong_with_the_newest(workdir, caplog):
    for step in (6, 7):
        (workdir / "checkpoints" / str(step) / "manifest.json").write_text("{" * step)
    for read in (saved.read, saved.describe, saved.newest):
        with pytest.raises(UserError) as raised:
            read(str(workdir))
        said = str(raised.value)
        assert "there is no whole checkpoint in" in said and "\n" not in said
        assert "6, 7; 7 is damaged: manifest.json" in said
    assert not caplog.records
