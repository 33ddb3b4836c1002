"""The doctor: it finds this machine sound, and each fault that is planted by its name."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax import lax
from train import tiny

from simclr_jax import parallel, processes, recipes, validation
from simclr_jax.checking import alike, doctor, rates, surroundings
from simclr_jax.checking.findings import NOTE, SOUND, WRONG
from simclr_jax.errors import UserError
from simclr_jax.losses import batch as batch_losses

FEW = 2  # devices, where a fault shows on two as on eight


def quiet(what, say=None):
    return contextlib.nullcontext()


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "images.npz"
    np.savez(path, images=tiny.sorted_images().pixels)
    return path


def asked(archive, **fields):
    c = tiny.recipe(data__source="memory", data__path=str(archive), **fields)
    c.eval.probe = c.eval.knn = False
    return c


@pytest.fixture(scope="module")
def whole(archive, tmp_path_factory):
    """Return the exit code and the lines of a whole visit, on all eight devices."""
    lines: list[str] = []
    workdir = str(tmp_path_factory.mktemp("runs"))
    code = doctor.run(doctor.Asked(asked(archive), "images.npz", workdir, 0.01), lines.append)
    return code, lines


def test_this_machine_is_sound(whole):
    code, lines = whole
    assert code == 0, lines
    assert lines[-1].startswith("sound") and not [x for x in lines if x.startswith(WRONG)]


@pytest.mark.parametrize(
    "line",
    [
        rf"versions: Python 3\..*jax {jax.__version__}",
        "devices: 8 x cpu",
        "memory: .* free on the host",
        "disk of .*: .* free",
        "repeat: .* the same bits",
        "slope: along the gradient the loss changes (0.9[5-9]|1.0)",
        "statistics: 1 and 8 devices, float32: .*e-0[5-9] apart",
        "loss: 1 and 8 devices, float32: .* apart",
        "gradients: 1 and 8 devices, float32: .*e-0[5-9] apart",
        r"input: images of images.npz arrive at \d+ images/s, a step of 8 takes \d+ images/s",
    ],
)
def test_it_says_what_it_has_looked_at(whole, line):
    assert [x for x in whole[1] if re.search(line, x)], whole[1]


# Planted faults -----------------------------------------------------------------------------------


def found(states=(WRONG,)):
    findings = doctor.same("float32", parallel.make_mesh(FEW), quiet)
    return "\n".join(line for x in findings if x.state in states for line in x.lines)


def test_statistics_of_each_device_are_found(monkeypatch):
    plain, there = alike.Trial.on, recipes.groups_at_once

    def on(trial, mesh):  # on one device there is nothing to synchronise
        each = (lambda config: 0) if mesh.size > 1 else there
        monkeypatch.setattr(recipes, "groups_at_once", each)
        return plain(trial, mesh)

    monkeypatch.setattr(alike.Trial, "on", on)
    said = found()
    assert "wrong     statistics: 1 and 2 devices" in said
    assert "batch normalisation is not synchronised" in said and "bn.groups" in said
    assert "loss: " in said and "it follows from the statistics" in said


class Faulty:
    """`jax.lax` whose gather carries no gradient."""

    def __getattr__(self, name):
        return getattr(lax, name)

    def all_gather(self, *args, **options):
        return jax.tree.map(lax.stop_gradient, lax.all_gather(*args, **options))


def test_a_gather_without_gradient_is_found(monkeypatch):
    """It is wrong on one device as well as on all, so that comparing them would not tell."""
    monkeypatch.setattr(batch_losses, "lax", Faulty())
    said = found()
    assert "wrong     slope: along the gradient" in said and "carries no gradient" in said
    assert "gradients: " not in said


def of_processes(monkeypatch, change):
    """Let there be two processes, the second of which finds what `change` makes of the first's."""
    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes, "everyone", lambda value: [value, change(value)])


def test_a_seed_that_processes_do_not_share_is_found(monkeypatch):
    trial = alike.Trial(FEW, "float32")
    of_processes(monkeypatch, lambda said: {**said, "weights": "others"})
    (finding,) = alike.seeds(trial)
    assert finding.state == WRONG
    assert "do not share a seed: process 1 begins with other weights" in finding.said
    of_processes(monkeypatch, lambda said: said)
    assert [x.state for x in alike.seeds(trial)] == [SOUND]


def test_what_begins_alike_depends_on_the_seed(monkeypatch):
    """Else the test before would compare nothing."""
    plain = alike.recipe

    def other(devices, dtype):
        c = plain(devices, dtype)
        c.seed = 1
        return c

    first = [alike.digest(x) for x in alike.Trial(FEW, "float32").first()]
    monkeypatch.setattr(alike, "recipe", other)
    second = [alike.digest(x) for x in alike.Trial(FEW, "float32").first()]
    assert first[0] != second[0] and first[1] != second[1]


def test_a_step_that_does_not_repeat_is_found():
    (finding,) = alike.repeats([alike.Outcome({}, "a"), alike.Outcome({}, "b")])
    assert finding.state == WRONG and "other bits" in finding.said


def test_numbers_that_are_none_are_no_rounding():
    nothing, some = (
        alike.Outcome({name: np.full(3, value) for name in alike.FAULTS}, "")
        for value in (np.nan, 1.0)
    )
    findings = alike.devices_agree(alike.Trial(FEW, "float32"), nothing, some)
    assert [x.state for x in findings] == [WRONG] * 3


def test_a_step_that_fails_is_a_finding(monkeypatch):
    def on(trial, mesh):
        raise RuntimeError("NCCL: unhandled\nsystem error")

    monkeypatch.setattr(alike.Trial, "on", on)
    assert "wrong     step: it fails: NCCL: unhandled system error" in found()


# What is around -----------------------------------------------------------------------------------


def rated(arriving, taken):
    return rates.Rates(arriving, taken, 8, 0)


def test_devices_that_wait_are_told_of_with_a_remedy():
    c = recipes.base()
    slow = rates.compared(rated(30, 120), c, "images", False)
    assert slow.state == NOTE and "wait for 75%" in slow.said and "simclr pack" in slow.advice
    fast = rates.compared(rated(121, 120), c, "images", False)
    assert fast.state == SOUND and not fast.advice


def test_a_disk_too_small_for_the_checkpoints_is_wrong(tmp_path):
    plenty, few = surroundings.disk(str(tmp_path / "a" / "b"), 2**70)[0], None
    assert plenty.state == WRONG and "checkpoints need" in plenty.said and plenty.advice
    few = surroundings.disk(str(tmp_path / "a" / "b"), 1)[0]
    assert few.state == SOUND and not (tmp_path / "a").exists(), "nothing is written"


def test_an_accelerator_that_is_not_used_is_told_of(tmp_path, monkeypatch):
    file = tmp_path / "nvidia0"
    monkeypatch.setattr(surroundings, "DRIVERS", {str(file): ("a GPU", ("gpu",), "cuda")})
    assert surroundings._unused("cpu") == []
    file.touch()
    assert surroundings._unused("gpu") == []
    (here,) = surroundings._unused("cpu")
    assert here.state == NOTE and "JAX_PLATFORMS=cpu" in here.advice
    monkeypatch.delenv("JAX_PLATFORMS")
    (there,) = surroundings._unused("cpu")
    assert there.state == WRONG and "jax[cuda" in there.advice


def test_processes_of_other_versions_are_found(monkeypatch):
    of_processes(monkeypatch, lambda said: {**said, "jax": "0.1"})
    first = surroundings.versions()[0]
    assert first.state == WRONG and "the same jax" in first.said


def test_photographs_are_made_where_none_are_named(tmp_path):
    pytest.importorskip("cv2")
    mesh = parallel.make_mesh(FEW)
    config = functools.partial(rates.made, place=tmp_path, mesh=mesh)
    folder = runpy.run_path(str(Path(__file__).parents[2] / "configs" / "folder.py"))
    ready, _ = rates.opened(config(folder["get_config"]()), mesh)
    assert ready.timetable.batch_size == 8 and len(ready.train) + len(ready.test) == 64
    assert ready.train.example(0)[0].shape == (375, 500, 3)


def test_a_batch_that_cannot_be_smaller_is_measured_whole(archive, tmp_path, monkeypatch):
    """A method may ask for more images than CPUs would be given."""
    plain = validation.validate

    def law(config, *given):
        plain(config, *given)
        if config.train.batch_size < tiny.BATCH:
            raise UserError("own.pairs is 16: set --config.train.batch_size=16")

    mesh, look = parallel.make_mesh(FEW), doctor.Asked(asked(archive), "images.npz", str(tmp_path))
    assert rates.opened(look.config, mesh)[0].timetable.batch_size == 8
    monkeypatch.setattr(validation, "validate", law)
    opened = rates.opened(look.config, mesh)
    assert opened[0].timetable.batch_size == opened[0].config.train.batch_size == tiny.BATCH
    monkeypatch.setattr(rates, "measure", lambda *_: rated(2, 1))
    found = [*doctor.speed(look, look.workdir, opened, mesh, quiet)]
    assert [(one.state, one.about) for one in found] == [(NOTE, "batch"), (SOUND, "input")]
    assert "of 16 images" in found[0].said and "own.pairs is 16" in found[0].said


def test_a_recipe_that_small_photographs_do_not_fit_is_a_note(tmp_path, monkeypatch):
    pytest.importorskip("cv2")
    folder = runpy.run_path(str(Path(__file__).parents[2] / "configs" / "folder.py"))
    c = folder["get_config"]()
    c.bn.groups = 8
    monkeypatch.setattr(rates, "photographs", lambda *_: None)
    look = doctor.Asked(c, workdir=str(tmp_path))
    (found,) = doctor.speed(look, look.workdir, None, parallel.make_mesh(FEW), quiet)
    assert (found.state, found.about) == (NOTE, "input")
    assert "bn.groups is 8, but train.batch_size=8" in found.said and "--data" in found.advice
    c.bn.groups = -1  # which no photographs are needed to see
    with pytest.raises(UserError, match=r"bn\.groups is -1"):
        doctor.run(look, lambda line: pytest.fail(line))


# The door -----------------------------------------------------------------------------------------

PLANTED = """
import sys
from simclr_jax import entry, processes
from simclr_jax.checking import alike
plain = alike.recipe
def other(devices, dtype):
    c = plain(devices, dtype)
    c.seed = processes.rank()
    return c
if sys.argv.pop(1) == "planted":
    alike.recipe = other
from simclr_jax import doctor
entry.run(doctor.main)
"""


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.parametrize("kind, code", [("sound", 0), ("planted", 1)])
def test_two_processes(archive, tmp_path, kind, code):
    script = tmp_path / "planted.py"
    script.write_text(PLANTED)
    root = Path(__file__).parents[2]
    tiny_recipe = root / "tests" / "e2e" / "tiny.py"
    command = [
        *(sys.executable, "launch/local", "-n", "2", "--devices_each=2", "--"),
        *(sys.executable, str(script), kind, f"--config={tiny_recipe}"),
        *(f"--config.data.path={archive}", "--secs=0.1", f"--workdir={tmp_path / 'runs'}"),
        *("--config.eval.probe=False", "--config.eval.knn=False"),
    ]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == code, done
    if kind == "sound":
        assert "4 x cpu in 2 processes, 2 of them in this one" in done.stdout
        assert "2 processes begin alike" in done.stdout and "1 and 4 devices" in done.stdout
    else:
        assert "processes do not share a seed: process 1 begins with other weights" in done.stdout
