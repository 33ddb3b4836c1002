"""Fine-tuning and distillation that cannot start say so in one line, and write nothing."""

import importlib
import shutil

import doors
import numpy as np
import pytest

from simclr_jax import documents
from simclr_jax.errors import UserError
from simclr_jax.stages import run
from simclr_jax.train import saved
from simclr_jax.train.checkpoints import Checkpoints

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def places(finished, unlabelled, tmp_path_factory):
    """Runs and images that do not fit together, by name."""
    directory = tmp_path_factory.mktemp("places")
    there = saved.read(str(finished.workdir))
    blind = Checkpoints(directory / "blind" / "checkpoints")  # as from eval.probe=False
    blind.save(20, {name: leaf for name, leaf in there.leaves.items() if "/probe/" not in name})
    blind.close()
    documents.write(directory / "blind" / "config.json", dict(there.record))
    converted = Checkpoints(directory / "converted" / "checkpoints")
    converted.save(20, dict(there.leaves))
    converted.close()
    record = dict(there.record) | {"converted": {"classifier_tap": None}}
    documents.write(directory / "converted" / "config.json", record)

    archive = dict(np.load(there.config.data.path))
    images, labels = archive["images"], archive["labels"]
    kinds = {
        "five": {"images": images, "labels": np.arange(60) % 5},
        "named": {"images": images, "labels": labels, "class_names": np.array(["a", "b", "c"])},
        "foreign": {"images": images, "test_images": images, "test_labels": np.arange(60) % 6},
        "color": {"images": np.repeat(images, 3, axis=3), "labels": labels},
    }
    for name, arrays in kinds.items():
        np.savez(directory / f"{name}.npz", **arrays)
    shutil.copy(unlabelled, directory / "unlabelled.npz")
    return {"run": finished.workdir, **{path.stem: path for path in directory.iterdir()}}


START, TEACHER = {"init.run": "{run}"}, {"distill.teacher": "{run}"}
FEW = {
    "no run": ("finetune", {}, ["data.source is open", "--config.init.run=RUN"]),
    "no teacher": ("distill", {}, ["data.source is open", "--config.distill.teacher=RUN"]),
    "no teacher, but a run": ("distill", START, ["distill.teacher is empty"]),
    "a run that is not there": ("finetune", {"init.run": "no"}, ["init.run=no", "no checkpoints"]),
    "a teacher that is not there": (
        "distill",
        START | {"distill.teacher": "no"},
        ["distill.teacher=no", "no checkpoints"],
    ),
    "misspelt parts": ("finetune", START | {"init.parts": "encoder,haed"}, ["haed", '"head"']),
    "a checkpoint without images": (
        "finetune",
        {"init.run": "{converted}"},
        ["converted checkpoint", "--config.data.source"],
    ),
    "no such layer": (
        "finetune",
        START | {"finetune.tap": 3},
        ["finetune.tap is 3", "2 layer(s)", "1 to 2"],
    ),
    "images without labels": (
        "finetune",
        START | {"data.path": "{unlabelled}"},
        ["images have no labels", "data.labels=True"],
    ),
    "labels beyond the names of classes": (
        "finetune",
        START | {"data.path": "{named}"},
        ["named.npz", "3 class_names for 4 classes"],
    ),
    "less than an image of each class": (
        "finetune",
        START | {"labels.use": "1%"},
        ["labels.use=1%", "54 images", "4 classes", "7.5% or more"],
    ),
    "labels that are neither": (
        "finetune",
        START | {"labels.use": "few"},
        ["labels.use=few", "10%", "file of names"],
    ),
    "labels that nothing reads": (
        "distill",
        TEACHER | {"labels.use": "10%"},
        ["labels.use is 10%", "--config.distill.alpha=0.5"],
    ),
    "a teacher that does not classify": (
        "distill",
        {"distill.teacher": "{blind}"},
        ["blind@20", "no classifier", "configs/finetune.py"],
    ),
    "a teacher of other classes": (
        "distill",
        TEACHER | {"data.path": "{five}"},
        ["run@20 tells 4 classes apart", "has 5", "--config.data.labels=False"],
    ),
    "a teacher of other classes than are held out": (
        "distill",
        TEACHER | {"data.path": "{foreign}", "eval.seen": True},
        ["run@20 tells 4 classes apart", "has 6"],
    ),
    "a teacher of other sizes": (
        "distill",
        TEACHER | {"data.image_size": 16},
        ["8 pixels", "16", "--config.data.image_size=8"],
    ),
    "a teacher of gray images": (
        "distill",
        TEACHER | {"data.path": "{color}"},
        ["1 channel(s)", "3"],
    ),
    "a field of pretraining": (
        "finetune",
        START | {"loss.temperature": 1.0},
        ["loss.temperature is 1.0", "stage finetune does not read it", "0.1"],
    ),
    "a field of distillation": (
        "finetune",
        START | {"distill.alpha": 0.5},
        ["distill.alpha is 0.5", "stage finetune"],
    ),
    "a probe": ("finetune", START | {"eval.probe": True}, ["--config.eval.probe=False"]),
    "no teacher at all": ("distill", TEACHER | {"distill.alpha": 0.0}, ["distill.alpha is 0.0"]),
    "another white than its teacher's": (
        "distill",
        TEACHER | {"data.white_level": "4095"},
        ["run@20 was trained with data.white_level=full", "set --config.data.white_level=full"],
    ),
    "a temperature of zero": (
        "distill",
        TEACHER | {"distill.temperature": 0.0},
        ["distill.temperature is 0.0", "1e-6 or more"],
    ),
    "a teacher in float64": (
        "distill",
        TEACHER | {"distill.teacher_dtype": "float64"},
        ["distill.teacher_dtype is float64", "JAX_ENABLE_X64=1"],
    ),
}


@pytest.mark.parametrize("recipe, fields, words", FEW.values(), ids=FEW)
def test_stages_that_cannot_start(places, tmp_path, recipe, fields, words):
    """The doors print what is raised here (`entry.run`), as test_bad_input.py shows."""
    config = importlib.import_module(f"configs.{recipe}").get_config()
    fields = {"train.batch_size": 16, "train.steps": 3, "optim.warmup_epochs": 0.0} | fields
    filled = {k: v.format(**places) if isinstance(v, str) else v for k, v in fields.items()}
    config.update_from_flattened_dict(filled)
    with pytest.raises(UserError) as raised:
        run.run(config, str(tmp_path / "run"))
    line = str(raised.value)
    missing = [word for word in words if word not in line]
    assert "\n" not in line and not missing, (missing, line)
    assert not (tmp_path / "run").exists(), "nothing is written"


def test_fine_tuning_without_a_run_through_the_door(tmp_path):
    workdir = tmp_path / "run"
    ended = doors.run(tmp_path, "--config=configs/finetune.py", f"--workdir={workdir}")
    assert ended.code == 1 and ended.err.count("\n") == 1, ended
    assert "data.source is open" in ended.err and "--config.init.run=RUN" in ended.err
    assert not workdir.exists()
