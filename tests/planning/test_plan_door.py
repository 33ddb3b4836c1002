"""The plan of a recipe, its figures against the run they foretell, and what it says to mistakes."""

from __future__ import annotations

import dataclasses
import json
import math
import re

import bucket
import jax
import jax.numpy as jnp
import pytest
import smallest
from etils import epath
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from train import tiny

from simclr_jax import alive, recipes
from simclr_jax.errors import UserError
from simclr_jax.planning import ahead, described, devices, footprint, plan
from simclr_jax.planning.any_batch import AnyBatch
from simclr_jax.planning.described import Case
from simclr_jax.planning.footprint import Footprint

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


def test_plan_knows_the_canvases_of_a_batch_and_the_work_of_its_views():
    fields = {"augment__placement": "canvas", "augment__canvas": 16}
    case = Case.of(recipe(**fields), DEVICES, 48, tiny.CLASSES)
    stage, mesh = tiny.make_stage(tiny.recipe(**fields), DEVICES)
    _, batch = next(stage.batches(0, 1))
    assert batch["canvas"].shape[2:] == (16, 16, 3)
    found = case.batch(case.images, mesh)
    assert {name: (b.shape, b.dtype) for name, b in found.items()} == {
        name: (b.shape, b.dtype) for name, b in batch.items()
    }
    assert case.sent == sum(values.nbytes for values in batch.values()) // DEVICES
    # Two products for each view: rows of the canvas, then columns of what is left.
    size = case.config.data.image_size
    assert size // 10 < 2, "no blur"
    products = size * 16 * 16 * 3 + size * size * 16 * 3
    assert case.view_flops() == 2 * products * 2 * case.images


def test_plan_prints_and_writes_what_it_found(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(alive, "SECS", 0.01)
    path = tmp_path / "plan.json"
    asked = dataclasses.replace(ASKED, memory=2**20)
    changed = recipe(train__dtype="bfloat16", train__steps_per_call=2, data__resident=True)
    plan.run(changed, asked, str(path))
    said, at_work = capsys.readouterr()
    assert "working   planning, 0:0" in at_work
    found = json.loads(path.read_text())
    assert found["batch_size"] == tiny.BATCH and found["devices"] == DEVICES
    parts = sum(found["state"].values())
    assert found["estimated"]["state"] == parts + 4  # the number of the step
    # Two chunks of two batches, as a run has them; a step's constants are counted with its batch.
    stage, _ = tiny.make_stage(tiny.recipe(train__steps_per_call=2), DEVICES)
    _, batches = next(stage.batches(0, 2))
    chunk = sum(values.nbytes for values in batches.values()) // DEVICES
    beside = found["beside"]
    pixels = 2 * tiny.BATCH * tiny.sorted_images().pixels[0].nbytes // DEVICES
    assert found["sent"] == (chunk - pixels) // 2  # images are there already
    assert 0 < found["flops_of_views"] < found["flops"] and "input " in said
    assert 0 <= found["estimated"]["batch"] + beside["waiting batches"] - 2 * chunk <= 4 * 128
    assert beside["resident images"] == tiny.sorted_images().pixels.nbytes
    step = sum(found["estimated"][name] for name in ("state", "batch", "temporary"))
    assert found["estimated"]["peak"] == step + sum(beside.values())
    plain, block = found["choices"]
    assert block["name"] == "--config.train.remat=block"
    assert block["peak"] <= plain["peak"] == found["estimated"]["peak"]
    # With 1 MiB the state fits, and some images do.
    assert plain["largest"] % DEVICES == 0
    fits = plain["peak"] <= found["room"]
    assert fits == (plain["largest"] >= tiny.BATCH)
    assert ("does not fit" in said) == (not fits or block["peak"] > found["room"])
    for word in ("parameters", "optimiser", "activations", "all-reduce", "TFLOP", "largest batch"):
        assert word in said


def test_the_largest_batch_leaves_room_for_what_a_run_holds(monkeypatch):
    class Steps(AnyBatch):
        """Whose program is the number of images."""

        alike = True

        def _plain(self, images):
            return True

        def _between(self, images):
            return images

    monkeypatch.setattr(footprint, "analyse", lambda images, *_: Footprint(100, 10 * images, 0))
    case = Case.of(recipe(train__steps_per_call=2, data__resident=True), DEVICES, 48, tiny.CLASSES)
    asked = dataclasses.replace(ASKED, memory=100_000)
    found = plan._choice("", case, Steps(None, None, None, 0), asked)
    images, resident = tiny.BATCH // DEVICES, 48 * 10 * 10 * 3
    assert found.peak == 100 + 4 * 10 * images + resident
    most = (90_000 - 100 - resident) // (4 * 10)
    assert found.largest == (most - most % plan.ROUND) * DEVICES


def test_what_is_made_before_an_epoch_is_counted_where_it_is_more_than_a_step():
    """PCL's k-means: features of all images, and as many numbers again while it compares them."""
    c = smallest.recipe("pcl", data__source="folder", data__path="nowhere")
    few, many = (Case.of(c, DEVICES, images, tiny.CLASSES) for images in (1000, 10**8))
    memory, held = Footprint(100, 20, 10**6), {"waiting batches": 3}
    assert 0 < plan.between_epochs(few) < 10**6
    assert plan.fullest(few, memory, held) == memory.peak + 3
    features = 4 * 10**8 * c.head.dim
    made = plan.between_epochs(many)
    assert features < made / 2 < 1.1 * features
    assert plan.fullest(many, memory, held) == 100 + 20 + made + 3
    assert plan.between_epochs(Case.of(recipe(), DEVICES, 48, tiny.CLASSES)) == 0


def test_both_columns_hold_what_a_run_holds_beside_its_step():
    found = {
        "room": 20 * 2**30,
        "state": {"parameters": 2**30},
        "estimated": {"batch": 2**30, "temporary": 2**31, "peak": 9 * 2**30},
        "beside": {"waiting batches": 3 * 2**30, "resident images": 2**31},
        "between_epochs": 0,
    }
    step = ahead.Compiled(Footprint(2**30, 2**30, 2**32), 7 * 2**30, 1.0, 1.0, {}, {})

    def rows(**fields):
        said = plan._memory_table(found | fields, compiled).splitlines()
        return [re.split(r"  +", line)[1:] for line in said]

    compiled = step
    assert rows() == [
        ["estimated", "compiled"],
        ["1.000"],
        ["1.000", "1.000"],
        ["2.000", "4.000"],
        ["3.000", "3.000"],
        ["2.000", "2.000"],
        ["9.000", "12.000"],
    ]
    assert rows(between_epochs=2**29)[-2:] == [["0.500"], ["9.000", "12.000"]]
    assert rows(room=11 * 2**30)[-1] == ["9.000", "12.000, does not fit"]
    compiled = dataclasses.replace(step, memory=None)
    assert rows()[-2:] == [["2.000"], ["9.000", "7.000, does not fit"]]


def test_a_plan_may_go_to_a_bucket_and_home(tmp_path, monkeypatch):
    monkeypatch.setattr(Case, "at_any_batch", lambda _: None)
    monkeypatch.setattr(plan, "estimate", lambda *_: {"batch_size": 7})
    monkeypatch.setattr(plan, "report", lambda *_: "")
    monkeypatch.setenv("HOME", str(tmp_path))
    with bucket.at(tmp_path / "bucket"):
        for path in ("gs://fake/plans/plan.json", "~/plan.json"):
            plan.run(recipe(), ASKED, path)
            written = epath.Path(path).expanduser().read_text()
            assert json.loads(written)["batch_size"] == 7
    with pytest.raises(UserError, match="cannot be written: name a file in a directory of yours"):
        plan.run(recipe(), ASKED, "nowhere/plan.json")


@pytest.mark.parametrize(
    "name, value, said",
    [
        ("data.source", "nothing", 'data.source is "nothing"'),
        ("data.source", "", 'data.source is ""'),
        ("data.max_megapixels", math.nan, "data.max_megapixels is nan"),
        ("data.path", "ftp://host/x", "ftp:// is no bucket that is known"),
        ("optim.base_lr", -1.0, "optim.base_lr is -1"),
    ],
)
def test_fields_are_checked_before_images_are_looked_for(monkeypatch, name, value, said):
    monkeypatch.setattr(described.sources, "open_splits", lambda _: pytest.fail("looked for them"))
    c = recipe()
    recipes.put(c, name, value)
    with pytest.raises(UserError, match=re.escape(said)):
        plan.run(c, plan.Asked("h100", DEVICES))


@pytest.mark.parametrize("place", ["directory", "nowhere/plan.json"])
def test_where_the_plan_goes_is_checked_before_it_is_made(tmp_path, monkeypatch, place):
    monkeypatch.setattr(plan.Case, "of", lambda *_: pytest.fail("planned"))
    (tmp_path / "directory").mkdir()
    with pytest.raises(UserError, match=r"--json=.* cannot be written: name a file"):
        plan.run(recipe(), ASKED, str(tmp_path / place))


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
        (plan.Asked("h100", DEVICES), {}, "plan without the images: give --images="),
        (dataclasses.replace(ASKED, images=0), {}, "--classes is 4, but only images that are not"),
        (dataclasses.replace(ASKED, compile=True), {}, "asks a TPU's compiler, --device is h100"),
        (plan.Asked("tpu_v5p", 1, compile=True), {}, "--devices=1: libtpu ends the process"),
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


@pytest.mark.parametrize("said", ["known_trip_count", "nothing"])
def test_what_crosses_in_a_loop_crosses_as_often_as_it_runs(said):
    def on_device(x):  # [3]
        x, _ = jax.lax.scan(lambda x, _: (jax.lax.psum(x, "d") / 2, None), x, length=5)
        return jax.lax.all_gather(x, "d"), x

    mesh = jax.make_mesh((DEVICES,), ("d",), (AxisType.Auto,))
    program = jax.shard_map(
        on_device, mesh=mesh, in_specs=P("d"), out_specs=P("d"), check_vma=False
    )
    text = jax.jit(program).lower(jnp.ones(3 * DEVICES)).compile().as_text()
    assert said in text or said == "nothing"
    text = text.replace("known_trip_count", said)  # TPUs leave it out: the condition has the bound
    assert ahead.collectives(text) == {"all-reduce": 5 * 3 * 4, "all-gather": DEVICES * 3 * 4}
