"""What a recipe leaves open is as in the run it starts from, and what it says stands."""

from __future__ import annotations

import importlib
import shutil

import numpy as np
import pytest
from ml_collections.config_dict import placeholder
from train import tiny

from simclr_jax import documents
from simclr_jax.errors import UserError
from simclr_jax.recipes import INHERITED, INHERITED_CROP, base, get
from simclr_jax.stages.inherit import inherit, pin
from simclr_jax.train.checkpoints import Checkpoints


def write_run(workdir, **fields):
    """Write a run that is no more than its recipe."""
    checkpoints = Checkpoints(workdir / "checkpoints")
    checkpoints.save(7, {"step": np.int32(7)})
    checkpoints.close()
    documents.write(workdir / "config.json", tiny.recipe(**fields).to_dict())


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs that differ from the defaults and from each other, and a converted checkpoint."""
    directory = tmp_path_factory.mktemp("runs")
    fields = {
        "data__source": "memory",
        "data__path": "images.npz",
        "data__split": "train",
        "data__eval_split": "dev",
        "data__labels": False,
        "data__threads": 3,
        "bn__epsilon": 1e-3,
        "augment__grid": "half_pixel",
        "augment__views__first__area_min": 0.3,
        "augment__views__first__jitter": 0.7,
    }
    write_run(directory / "wide", **fields)
    write_run(directory / "narrow", **fields | {"head__dim": 7})
    write_run(directory / "converted", data__image_size=16)
    record = documents.read(directory / "converted" / "config.json", dict)
    documents.write(
        directory / "converted" / "config.json", record | {"converted": {"classifier_tap": 0}}
    )
    return directory


def recipe(name, *arguments, **fields):
    c = importlib.import_module(f"configs.{name}").get_config(*arguments)
    with c.unlocked():
        c.update_from_flattened_dict({k.replace("__", "."): v for k, v in fields.items()})
    return c


def test_open_fields_are_those_of_the_run(runs):
    c, said = inherit(recipe("finetune", init__run=str(runs / "wide")))
    there = documents.read(runs / "wide" / "config.json", dict)
    for name in INHERITED:
        assert get(c, name) == get(there, name), name
    # Pretraining may have been told to ignore labels, fine-tuning cannot.
    assert c.data.to_dict() == there["data"] | {"labels": True}
    (view,) = c.augment.views.values()
    for field in INHERITED_CROP:
        assert view[field] == there["augment"]["views"]["first"][field], field
    assert view.jitter == view.grayscale == view.blur == 0  # crop and flip are all there is
    assert view.area_min == 0.3
    assert len(said) == 1 and f"as in {runs / 'wide'}@7" in said[0]


@pytest.mark.parametrize(
    "there, given, said",
    [
        ({"crop": False, "flip": 0.0}, {}, True),
        ({"crop": False, "flip": 0.5}, {}, False),
        ({"crop": True, "flip": 0.0}, {}, False),
        ({"crop": False, "flip": 0.0}, {"crop": True}, False),
        ({"crop": False, "flip": 0.0}, {"blur": 0.5}, False),
    ],
)
def test_that_a_run_without_crops_leaves_images_as_they_are_is_said(tmp_path, there, given, said):
    fields = {f"augment__views__{v}__{n}": x for v in ("first", "second") for n, x in there.items()}
    write_run(tmp_path / "run", **fields)
    given = {f"augment__views__first__{name}": value for name, value in given.items()}
    _, lines = inherit(recipe("finetune", init__run=str(tmp_path / "run"), **given))
    assert any("--config.augment.views.first.crop=True crops" in line for line in lines) == said
    assert len(lines) == 1 + said


SAID = {
    "data__path": "elsewhere.npz",
    "data__labels": False,
    "data__split": "validation",
    "data__threads": 1,
    "data__image_size": 24,
    "model__depth": 18,
    "bn__epsilon": 1e-4,
    "augment__views__first__area_min": 0.5,
}


@pytest.mark.parametrize("resumed", [False, True])
def test_what_a_recipe_says_stands(runs, resumed):
    before = documents.read(runs / "wide" / "config.json", dict) if resumed else None
    c, _ = inherit(recipe("finetune", init__run=str(runs / "wide"), **SAID), before)
    for name, value in SAID.items():
        assert get(c, name.replace("__", ".")) == value, name
    assert c.data.eval_split == "dev" and c.data.source == "memory"


def test_other_images_bring_nothing_of_the_run_s(runs):
    given = {"init__run": str(runs / "wide"), "data__source": "digits", "data__name": "placed"}
    c, said = inherit(recipe("finetune", **given))
    want = base().data.to_dict() | {"source": "digits", "name": "placed", "image_size": 8}
    assert c.data.to_dict() == want
    assert c.model.depth == 10 and "model" in said[0]


def test_a_student_is_like_its_own_run_or_else_like_its_teacher(runs):
    teacher = {"distill__teacher": str(runs / "narrow")}
    alone, _ = inherit(recipe("distill", **teacher))
    assert alone.head.dim == 7 and alone.data.path == "images.npz"
    started, _ = inherit(recipe("distill", init__run=str(runs / "wide"), **teacher))
    assert started.head.dim == 5
    smaller, _ = inherit(recipe("distill", model__width=0.5, **teacher))
    assert smaller.model.width == 0.5 and smaller.model.depth == 10


def test_a_resumed_run_does_not_look_again(runs, tmp_path):
    """The run it started from may have gone, or changed, since."""
    before, _ = inherit(recipe("finetune", init__run=str(runs / "wide")))
    again, said = inherit(recipe("finetune", init__run=str(tmp_path)), before.to_dict())
    before.init.run = again.init.run
    assert again.to_dict() == before.to_dict() and not said


def save_again(workdir, step):
    checkpoints = Checkpoints(workdir / "checkpoints", keep=1)
    checkpoints.save(step, {"step": np.int32(step)})
    checkpoints.close()


@pytest.mark.parametrize(
    "stage, field", [("finetune", "init__run"), ("distill", "distill__teacher")]
)
def test_a_resumed_run_starts_from_the_checkpoint_it_started_from(runs, tmp_path, stage, field):
    """However far the other run has got since, and, if only its weights were wanted, without it."""
    other = shutil.copytree(runs / "wide", tmp_path / "other")
    group, name = field.split("__")
    first, again, fresh = (recipe(stage, **{field: str(other)}) for _ in range(3))
    first, _ = inherit(first)
    pin(first, None)
    assert first[group][name] == f"{other}@7"
    save_again(other, 9)
    pin(again, first.to_dict())
    assert again[group][name] == f"{other}@7"
    pin(fresh, None)
    assert fresh[group][name] == f"{other}@9"
    shutil.rmtree(other)
    pin(again, first.to_dict())
    another = recipe(stage, **{field: str(runs / "narrow")})
    pin(another, first.to_dict())
    assert another[group][name] == str(runs / "narrow"), "which is refused, as another recipe"


def test_a_run_that_is_only_asked_about_its_model_is_not_pinned(runs):
    c = recipe("finetune", init__run=str(runs / "wide"), init__parts="none")
    pin(c, None)
    assert c.init.run == str(runs / "wide")


def test_a_recipe_without_open_fields_is_left_as_it_is():
    c = recipe("digits")
    assert inherit(c) == (c, [])


def test_what_the_images_decide_is_left_open_without_a_run():
    c = recipe("folder")
    assert c.model.depth is None and inherit(c)[0].model.depth is None


def test_images_of_a_converted_checkpoint_must_be_said(runs):
    given = {"init__run": str(runs / "converted")}
    with pytest.raises(UserError, match=r"converted checkpoint, .* no images: set .*data.source"):
        inherit(recipe("finetune", **given))
    c, _ = inherit(recipe("finetune", data__source="digits", **given))
    assert c.data.image_size == 16 and c.data.labels


MISSING = {
    "finetune": r"data.source is open: give --config.init.run=RUN .* or set --config.data.source",
    "distill": r"data.source is open: give --config.distill.teacher=RUN",
}


@pytest.mark.parametrize("stage, message", MISSING.items())
def test_without_a_run_there_is_nothing_to_take(stage, message):
    with pytest.raises(UserError, match=message):
        inherit(recipe(stage))


def test_a_field_of_a_crop_is_named_as_it_is_on_the_command_line():
    c = base()
    c.augment.views.second.area_min = placeholder(float)
    want = (
        r"augment.views.second.area_min is open: .* or set --config.augment.views.second.area_min"
    )
    with pytest.raises(UserError, match=want):
        inherit(c)


def test_what_an_old_record_does_not_have_is_the_default(runs):
    before = documents.read(runs / "wide" / "config.json", dict)
    del before["model"]["se_ratio"]
    c, _ = inherit(recipe("finetune", init__run=str(runs / "wide")), before)
    assert c.model.se_ratio == base().model.se_ratio and c.bn.epsilon == 1e-3


def test_a_run_that_is_none(tmp_path):
    with pytest.raises(UserError, match=r"init.run=.* holds no checkpoints"):
        inherit(recipe("finetune", init__run=str(tmp_path)))
