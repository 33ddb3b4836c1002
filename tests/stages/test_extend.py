"""A finished run that is trained on: interrupted or not the same bits, at the rate it was told."""

from __future__ import annotations

import dataclasses
import json
import shutil

import logged
import numpy as np
import pytest
import smallest
from frame import toys
from stages import taught
from stages.written import write_images
from train import tiny

from simclr_jax import documents, parallel
from simclr_jax.errors import UserError
from simclr_jax.segments import Extension
from simclr_jax.stages import run
from simclr_jax.train import loop, saved

PLANNED, LONGER, LONGEST = 5, 9, 12  # steps, of 3 in an epoch
ASKED = Extension(f"{LONGER}steps", base_lr=0.02, warmup_epochs=0.67)  # two steps of warm-up
FIXED = {"train__steps": PLANNED, "log__every_steps": 1, "optim__base_lr": 0.01}
FIXED |= {"optim__warmup_epochs": 0.34, "checkpoint__every_steps": 3, "checkpoint__keep": 1}
CASES = {
    "simclr": {"memory__size": 0},
    "with memory": {},
    "byol": {},
    "finetune": {},
    # Clusters before each epoch, and calls of two steps, which end at the border all the same.
    "pcl": {"train__steps_per_call": 2, "checkpoint__every_steps": 2, "log__every_steps": 2},
}
OFTEN = ("byol",)
ASKED_OF = [case if case in OFTEN else pytest.param(case, marks=pytest.mark.slow) for case in CASES]


class Kill(Exception):
    """What ends a run at a point where nothing is prepared for it."""


@pytest.fixture(scope="module", autouse=True)
def small():
    """Replace the encoder by one that compiles at once, and train on one device."""
    make_mesh = parallel.make_mesh
    with toys.known(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "make_mesh", lambda devices=1: make_mesh(devices))
        yield


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "images.npz"
    write_images(path, count=tiny.BATCH * tiny.STEPS, side=8)
    return path


def recipe(case, images, **fields):
    fixed = {"data__source": "memory", "data__path": str(images), **FIXED, **CASES[case], **fields}
    fixed |= {"eval__knn": False, "eval__compare": False}
    if case == "finetune":
        return taught.recipe(**fixed, init__parts="none")
    return smallest.recipe("simclr" if case == "with memory" else case, **fixed)


def killed_at(step):
    """Return a loop that is killed when it is handed the chunk with this step."""

    def train(stage, *others):
        def batches(first, last):
            for steps, batch in stage.batches(first, last):
                if step in steps:
                    raise Kill
                yield steps, batch

        return loop.train(dataclasses.replace(stage, batches=batches), *others)

    return train


@pytest.fixture(scope="module")
def planned(images, tmp_path_factory):
    """Return the finished run of a case, made once."""
    made = {}

    def of(case):
        if case not in made:
            made[case] = tmp_path_factory.mktemp("planned") / "run"
            assert run.run(recipe(case, images), str(made[case])) == 0
        return made[case]

    return of


def leaves(workdir, step):
    return saved.read(f"{workdir}@{step}").leaves


def same(one, other, step):
    found, want = leaves(one, step), leaves(other, step)
    assert found.keys() == want.keys()
    for name, leaf in want.items():
        assert np.asarray(leaf).tobytes() == np.asarray(found[name]).tobytes(), name
    assert logged.lines(one) == logged.lines(other)


def steps(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


@pytest.mark.parametrize("case", ASKED_OF)
def test_extended_and_killed_is_extended_straight(case, planned, images, tmp_path):
    """Also where no flag is given once the extension is recorded, and where it began once more."""
    config = recipe(case, images)
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    for place in (straight, killed):
        shutil.copytree(planned(case), place)
    assert run.run(config, str(straight), extension=ASKED) == 0
    with pytest.raises(Kill):  # before anything of it was saved
        run.run(config, str(killed), by=killed_at(5), extension=ASKED)
    with pytest.raises(Kill):
        run.run(config, str(killed), by=killed_at(8), extension=ASKED)
    assert run.run(config, str(killed)) == 0  # the command as it was
    same(killed, straight, LONGER)
    before, after = leaves(straight, PLANNED), leaves(straight, LONGER)
    assert any((before[name] != after[name]).any() for name in before if name.startswith("params"))
    assert steps(straight) == [PLANNED, LONGER]  # what was finished once stays


@pytest.mark.slow
def test_a_student_is_extended_likewise(planned, images, tmp_path):
    """Its teacher, a fine-tuned run, is the one it had."""
    teacher = f"{planned('finetune')}@{PLANNED}"
    fixed = {"data__source": "memory", "data__path": str(images), **FIXED, "eval__compare": False}
    config = taught.recipe("distill", **fixed, eval__knn=False, distill__teacher=teacher)
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    for place in (straight, killed):
        assert run.run(config, str(place)) == 0
    assert run.run(config, str(straight), extension=ASKED) == 0
    with pytest.raises(Kill):
        run.run(config, str(killed), by=killed_at(7), extension=ASKED)
    assert run.run(config, str(killed)) == 0
    same(killed, straight, LONGER)


@pytest.mark.slow
def test_all_lost_since_before_the_border_it_passes_the_border_as_it_did(planned, images, tmp_path):
    config = recipe("byol", images, checkpoint__keep=9)
    straight, back = (shutil.copytree(planned("byol"), tmp_path / name) for name in "ab")
    shutil.rmtree(back)
    with pytest.raises(Kill):
        run.run(config, str(back), by=killed_at(4))
    assert run.run(config, str(back)) == 0
    for place in (straight, back):
        assert run.run(config, str(place), extension=ASKED) == 0
    for step in (PLANNED, 6, LONGER):
        (back / "checkpoints" / str(step) / "manifest.json").write_text("{}")
    assert run.run(config, str(back)) == 0
    same(back, straight, LONGER)


def test_rate_and_momentum_of_a_target_begin_anew_in_each_segment(planned, images, tmp_path):
    """Worked out from the papers' formulas, with steps counted from where a segment begins."""
    place = shutil.copytree(planned("byol"), tmp_path / "run")
    config = recipe("byol", images)
    assert run.run(config, str(place), extension=ASKED) == 0
    assert run.run(config, str(place), extension=Extension(f"{LONGEST}steps")) == 0
    lines = [line for line in logged.lines(place) if "loss" in line]
    assert [line["step"] for line in lines] == [*range(1, LONGEST + 1)]
    assert [line.get("segment") for line in lines] == [None] * 5 + [1] * 4 + [2] * 3
    rates, momenta = [], []
    for count, rises, peak in ((5, 1, 0.01), (4, 2, 0.02), (3, 0, 0.01)):
        for i in range(count):
            fallen = (1 + np.cos(np.pi * (i - rises) / (count - rises))) / 2
            rates.append(peak * (i / rises if i < rises else fallen))
            momenta.append(1 - (1 - 0.6) * (np.cos(np.pi * i / count) + 1) / 2)
    np.testing.assert_allclose([line["lr"] for line in lines], rates, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose([line["target_momentum"] for line in lines], momenta, rtol=1e-5)


def test_a_second_same_command_adds_nothing(planned, images, tmp_path, capsys):
    place = shutil.copytree(planned("simclr"), tmp_path / "run")
    config = recipe("simclr", images)
    assert run.run(config, str(place), extension=ASKED) == 0
    said = capsys.readouterr().out
    assert "extended  by steps 5 to 9 (epochs 1.7 to 3.0): warm-up until step 7, peak" in said
    assert "an extended run is another than one planned as long: its rate had fallen" in said
    lines, config_json = logged.lines(place), (place / "config.json").read_bytes()
    assert run.run(config, str(place), extension=ASKED) == 0
    assert logged.lines(place) == lines
    assert (place / "config.json").read_bytes() == config_json
    assert json.loads(config_json)["segments"] == [
        {"first_step": 5, "total_steps": 9, "warmup_steps": 2, "peak_rate": 0.02}
    ]
    # Lost, it comes back from a checkpoint, with what was added.
    (place / "config.json").unlink()
    assert run.run(config, str(place)) == 0
    assert (place / "config.json").read_bytes() == config_json


REFUSED = {
    "no length": (Extension("soon"), 'is "soon": give the epochs of the whole run'),
    "half a step": (Extension("7.5steps"), "give the epochs of the whole run"),
    "nothing": (Extension("0"), "give the epochs of the whole run"),
    "no longer": (Extension("5steps"), "is 5 steps in all, and the run has 5 .1.667 epochs"),
    "shorter": (Extension("1"), "is 4 steps in all, and the run has 5"),
    "all warm-up": (Extension("6steps", warmup_epochs=1.0), "is 3 steps, no less than the 1"),
}


@pytest.mark.parametrize("extension, words", REFUSED.values(), ids=REFUSED)
def test_refused_and_nothing_touched(extension, words, planned, images, tmp_path):
    place = shutil.copytree(planned("simclr"), tmp_path / "run")
    with pytest.raises(UserError, match=words):
        run.run(recipe("simclr", images), str(place), extension=extension)
    assert (place / "config.json").read_bytes() == (planned("simclr") / "config.json").read_bytes()


def test_what_cannot_be_extended_is_said(planned, images, tmp_path):
    config = recipe("simclr", images)
    with pytest.raises(UserError, match=r"none holds no run: leave it out"):
        run.run(config, str(tmp_path / "none"), extension=ASKED)
    place = tmp_path / "run"
    with pytest.raises(Kill):
        run.run(config, str(place), by=killed_at(4))
    with pytest.raises(UserError, match=r"is at step 3 of 5: finish it first"):
        run.run(config, str(place), extension=ASKED)
    place = shutil.copytree(planned("simclr"), tmp_path / "pipeline" / "run")
    other = recipe("simclr", images, loss__temperature=0.7)
    with pytest.raises(UserError, match=r"another recipe .loss.temperature"):
        run.run(other, str(place), extension=ASKED)
    # What most try first leads here.
    with pytest.raises(UserError, match=r"train.steps: 5 -> 9.: to train .* --extend_to=EPOCHS"):
        run.run(recipe("simclr", images, train__steps=9), str(place))
    (tmp_path / "pipeline" / "results").mkdir()
    (tmp_path / "pipeline" / "results" / "pipeline.json").write_text("{}")
    with pytest.raises(UserError, match=r"is a run of the pipeline in .*: copy its directory"):
        run.run(config, str(place), extension=ASKED)
    (tmp_path / "pipeline" / "results" / "pipeline.json").unlink()
    assert run.run(config, str(place), extension=ASKED) == 0
    with pytest.raises(UserError, match=r"--extend_lr=0.5 is a peak rate of 0.5, but .* with 0.02"):
        run.run(config, str(place), extension=ASKED._replace(base_lr=0.5))
    with pytest.raises(UserError, match=r"--extend_warmup=0.34 is steps of warm-up: 1, but .* 2"):
        run.run(config, str(place), extension=ASKED._replace(warmup_epochs=0.34))
    found = documents.read(place / "config.json", dict)
    for segments, words in (
        ([], "another recipe"),
        ([{**found["segments"][0], "total_steps": 8}], "another recipe"),
        ([{**found["segments"][0], "first_step": 4}], "extended at step 4"),
        ("many", "segments: Expected `array`"),
    ):
        documents.write(place / "config.json", {**found, "segments": segments})
        with pytest.raises(UserError, match=words):
            run.run(config, str(place))
