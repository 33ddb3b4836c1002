"""The plan of a recipe, its figures against the run they foretell, and what it says to mistakes."""

from __future__ import annotations

import dataclasses
import json

import jax
import pytest
from train import tiny

from simclr_jax.errors import UserError
from simclr_jax.planning import ahead, devices
from simclr_jax.stages import plan
from simclr_jax.stages.described import Case

DEVICES = 8
ASKED = plan.Asked("h100", DEVICES, images=48, classes=tiny.CLASSES)


def recipe(**fields):
    """Return the smallest recipe, of images that are not here."""
    c = tiny.recipe(data__source="folder", data__path="nowhere", **fields)
    c.data.image_size = 10  # as large as the images themselves, which placement device sends
    return c


def test_plan_describes_the_batches_and_the_state_of_a_run():
    case = Case.of(recipe(), DEVICES, 48, tiny.CLASSES)
    stage, mesh = tiny.make_stage(tiny.recipe(), DEVICES)
    _, batch = next(stage.batches(0, 1))
    found = case.batch(case.images, mesh)
    assert {name: (b.shape, b.dtype) for name, b in found.items()} == {
        name: (b.shape, b.dtype) for name, b in batch.items()
    }
    assert jax.tree.map(lambda a: (a.shape, a.dtype), case.state()) == jax.tree.map(
        lambda a: (a.shape, a.dtype), jax.eval_shape(stage.init)
    )


def test_plan_prints_and_writes_what_it_found(tmp_path, capsys):
    path = tmp_path / "plan.json"
    asked = dataclasses.replace(ASKED, memory=2**20)
    plan.run(recipe(train__dtype="bfloat16"), asked, str(path))
    found, said = json.loads(path.read_text()), capsys.readouterr().out
    assert found["batch_size"] == tiny.BATCH and found["devices"] == DEVICES
    parts = sum(found["state"].values())
    assert found["estimated"]["state"] == parts + 4  # the number of the step
    plain, block = found["choices"]
    assert block["name"] == "--config.train.remat=block"
    assert block["peak"] <= plain["peak"]
    # With 1 MiB the state fits, and some images do.
    assert plain["largest"] % DEVICES == 0
    fits = plain["peak"] <= found["room"]
    assert fits == (plain["largest"] >= tiny.BATCH)
    assert ("does not fit" in said) == (not fits or block["peak"] > found["room"])
    for word in ("parameters", "optimiser", "activations", "all-reduce", "TFLOP", "largest batch"):
        assert word in said


@pytest.mark.parametrize("text, size", [("32GB", 2**35), ("1.5 GiB", 1.5 * 2**30), ("512M", 2**29)])
def test_bytes_of_a_device(text, size):
    assert devices.parse_bytes(text) == size


@pytest.mark.parametrize("chips", [1, 4, 8, 32, 512])
@pytest.mark.parametrize("name", ["tpu_v4", "tpu_v5e"])
def test_slices_have_the_chips_asked_for(name, chips):
    sides = devices.topology(name, chips)[0].partition(":")[2].split("x")
    product = 1
    for side in map(int, sides):
        product *= side
    assert product == chips and len(sides) == devices.find(name).axes


@pytest.mark.parametrize(
    "attempt, message",
    [
        (lambda: devices.parse_bytes("many"), '--device_memory is "many": write 32GB, say'),
        (lambda: devices.find("tpu_v"), "choose one of tpu_v4,"),
        (lambda: devices.topology("tpu_v4", 24), "--devices is 24: tpu_v4 is planned for 1, 4, 8"),
    ],
)
def test_mistakes_are_one_line(attempt, message):
    with pytest.raises(UserError) as error:
        attempt()
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "asked, fields, message",
    [
        (dataclasses.replace(ASKED, images=0), {}, "plan without the images: give --images="),
        (dataclasses.replace(ASKED, compile=True), {}, "asks a TPU's compiler, --device is h100"),
        (dataclasses.replace(ASKED, count=3), {}, "3 devices do not divide"),
        (ASKED, {"stage": "distill"}, "stage is distill: plan knows pretrain and finetune"),
    ],
)
def test_a_recipe_that_cannot_be_planned_is_one_line(asked, fields, message):
    with pytest.raises(UserError) as error:
        plan.run(recipe(**fields), asked)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_described_images_take_no_memory():
    config = recipe()
    config.data.source, config.data.name, config.data.image_size = "tfds", "imagenet2012", 224
    train = Case.of(config, DEVICES).prepared.train
    assert len(train) == 1_281_167 and train.example(7)[0].shape == (224, 224, 3)


def test_a_compiler_that_runs_out_of_memory_says_of_how_much():
    text = "RESOURCE_EXHAUSTED: the total memory required for HLO temporaries (44.22G) exceeds "
    assert ahead.out_of_memory(text + "available HBM (30.75G).") == 44.22 * 2**30
    assert ahead.out_of_memory("Used 34.50G of 30.75G hbm.") == 34.5 * 2**30
    assert ahead.out_of_memory("INTERNAL: something else") is None


@pytest.mark.skipif(not ahead.available(), reason="libtpu (extra `plan`) is not installed")
def test_compiler_of_the_tpu_agrees_on_what_crosses_devices():
    case = Case.of(recipe(), 4, 48, tiny.CLASSES)
    found = case.compile("tpu_v5e")
    assert found.memory
    steps = case.at_any_batch()
    # The compiler may gather in place of scattering, and pads scalars.
    assert found.collectives["all-reduce"] >= 0.9 * steps.collectives(case.images)["all-reduce"]
