"""Model folders and safetensors: `load` makes of them what it makes of the run; damage is said."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import types

import numpy as np
import pytest
from interop import torch_packages
from stages.written import write_images, write_run
from train import tiny

import simclr_jax
from simclr_jax import documents
from simclr_jax.embedding import embed
from simclr_jax.errors import BadFile, UserError
from simclr_jax.interop import convert, export
from simclr_jax.interop.export import Options
from simclr_jax.judging import linear_probe
from simclr_jax.judging.datasets import Wanted
from simclr_jax.stages.warm_start import load_parts
from simclr_jax.train import manifest, saved
from simclr_jax.train.checkpoints import Checkpoints

safetensors = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")

IMAGES = np.random.RandomState(3).randint(0, 256, (3, 13, 11, 3)).astype(np.uint8)
HOME = "/home/somebody/photographs"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Write a run with scores; those of another step are not its own."""
    fields = {"data__source": "folder", "data__path": HOME, "head__layers": 3}
    workdir = write_run(tmp_path_factory.mktemp("place") / "run", **fields)
    (workdir / "results").mkdir()
    score = {"accuracy": 0.8125, "low": 0.75, "high": 0.875}
    summary = {"scores": {"pretrained encoder": {"kNN": score}}, "protocol": {"step": 7}}
    documents.write(workdir / "results" / "summary.json", summary)
    for step in (7, 5):
        result = {
            "name": f"digits.lbfgs.{step}",
            "tap": "h",
            "checkpoint": {"step": step},
            "data": {"name": "digits" if step == 7 else HOME, "test": {"split": "test"}},
            "scores": {"top1": {"value": 0.5 + step / 100, "low": 0.5, "high": 0.625}},
        }
        documents.write(workdir / "results" / f"digits.lbfgs.{step}.json", result)
    own = {**result, "name": "own", "checkpoint": {"step": 7}}
    documents.write(workdir / "results" / "own.json", own)
    return workdir


@pytest.fixture(scope="module")
def folder(run):
    out = run.parent / "model"
    export.run(Options(str(run), "huggingface", str(out), ("h", "logits")), lambda line: None)
    return out


def test_load_reads_a_folder_as_the_run(run, folder):
    mine, theirs = simclr_jax.load(folder), simclr_jax.load(run)
    assert (mine.step, mine.taps, mine.size) == (theirs.step, theirs.taps, theirs.size)
    for tap in ("h", "z", "head1"):
        np.testing.assert_array_equal(mine(IMAGES, tap=tap), theirs(IMAGES, tap=tap))
    assert mine.classifier and theirs.classifier and mine.classifier[0] == theirs.classifier[0]
    np.testing.assert_array_equal(mine.classifier[1].kernel, theirs.classifier[1].kernel)


def test_a_classifier_on_a_layer_of_the_head_comes_back_there(tmp_path):
    """That of a converted checkpoint, whose record says which layer it reads."""
    run = write_run(tmp_path / "run")
    read = saved.read(str(run))
    random = np.random.default_rng(2)
    dense = {
        "params/classifier/dense/kernel": random.normal(size=(32, 3)).astype(np.float32),
        "params/classifier/dense/bias": random.normal(size=3).astype(np.float32),
    }
    checkpoints = Checkpoints(tmp_path / "converted" / "checkpoints")
    checkpoints.save(7, {**read.leaves, **dense})
    checkpoints.close()
    converted = {"source": f"{HOME}/model.ckpt-7", "classifier_tap": 1}
    record = {**read.record, "stage": "convert", "converted": converted}
    documents.write(tmp_path / "converted" / "config.json", record)
    out = tmp_path / "model"
    export.run(Options(str(tmp_path / "converted"), "huggingface", str(out)), lambda line: None)
    assert "fc.weight" in safetensors.load_file(out / "head.safetensors")
    assert HOME not in (out / "config.json").read_text()
    tap, weights = simclr_jax.load(out).classifier
    assert tap == "head1"
    np.testing.assert_array_equal(weights.kernel, dense["params/classifier/dense/kernel"])


def test_a_folder_of_the_hub_is_read_where_its_client_keeps_it(run, folder, monkeypatch):
    asked = hub_of(folder, monkeypatch)
    found = simclr_jax.load("hf://somebody/digits")
    np.testing.assert_array_equal(found(IMAGES), simclr_jax.load(run)(IMAGES))
    assert asked == [["config.json"], ["config.json", "model.safetensors", "head.safetensors"]]


def hub_of(folder, monkeypatch):
    """Stand in for the Hub by a folder; return the list of what is fetched."""
    asked, hub = [], types.ModuleType("huggingface_hub")

    def snapshot_download(name, revision, allow_patterns):
        asked.append(allow_patterns)
        return str(folder)

    hub.snapshot_download = snapshot_download  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    return asked


def test_of_another_model_nothing_but_its_description_is_fetched(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    asked = hub_of(tmp_path, monkeypatch)
    with pytest.raises(BadFile, match="is of a model of type bert"):
        simclr_jax.load("hf://somebody/bert")
    assert asked == [["config.json"]]


def test_a_method_that_is_not_here_is_not_looked_for(run, folder, tmp_path):
    there = shutil.copytree(folder, tmp_path / "model")
    said = documents.read(there / "config.json", dict)
    said["recipe"] |= {"method": "somebodys.method", "method_of_somebody": {"field": 1}}
    documents.write(there / "config.json", said)
    found = simclr_jax.load(there)
    np.testing.assert_array_equal(found(IMAGES), simclr_jax.load(run)(IMAGES))


@pytest.mark.parametrize(
    ("group", "fields"),
    [("model", {"depth": None}), ("data", {"image_size": None})],
)
def test_a_description_of_no_network_is_one_line(folder, tmp_path, group, fields):
    there = shutil.copytree(folder, tmp_path / "model")
    said = documents.read(there / "config.json", dict)
    said["recipe"][group] |= fields
    documents.write(there / "config.json", said)
    with pytest.raises(UserError) as raised:
        simclr_jax.load(there)
    assert "\n" not in str(raised.value)


def test_the_card_has_the_scores_of_this_step_with_their_intervals(folder):
    card = (folder / "README.md").read_text()
    assert "| pretrained encoder | at the end of the run | kNN | 81.2 (75.0 to 87.5) |" in card
    assert "| digits.lbfgs.7, tap h | digits test | top1 | 57.0 (50.0 to 62.5) |" in card
    assert "digits.lbfgs.5" not in card
    assert "| own, tap h | images of its own test | top1 |" in card
    assert "not by timm: it has no ResNet-10" in card


def test_no_file_says_where_a_persons_images_lie(folder):
    for file in folder.iterdir():
        assert HOME.encode() not in file.read_bytes(), file.name
        assert str(folder.parent).encode() not in file.read_bytes(), file.name


def test_safetensors_has_the_arrays_in_the_layout_of_torch(run, tmp_path):
    out = tmp_path / "x.safetensors"
    export.run(Options(str(run), "safetensors", str(out), ("z",)), lambda line: None)
    found, leaves = safetensors.load_file(out), saved.read(str(run)).leaves
    kernel = leaves["params/encoder/group2_block1/conv1/conv/kernel"]
    np.testing.assert_array_equal(found["layer2.0.conv1.weight"], kernel.transpose(3, 2, 0, 1))
    variance = leaves["batch_stats/head/bn1/var"]
    np.testing.assert_array_equal(found["head.bn1.running_var"], variance)
    import safetensors as package

    with package.safe_open(out, "numpy") as file:
        metadata = file.metadata()
    about = json.loads(metadata["about"])
    assert metadata["format"] == "pt" and about["step"] == 7 and about["taps"] == ["z"]
    assert about["preprocessing"]["view"] == {
        **{"size": 8, "central_share": 1.0, "inside": False},
        "resize": "bicubic, grid corner",
    }


def changed(folder, place, **fields):
    """Copy a folder with other fields in its configuration, which are sealed anew."""
    shutil.copytree(folder, place)
    config = documents.read(place / "config.json", dict)
    documents.write(place / "config.json", config | fields)
    return place


def test_a_folder_of_another_version_or_program_is_refused(folder, tmp_path):
    with pytest.raises(BadFile, match=r"has format 2, this version .* format 1: export it again"):
        simclr_jax.load(changed(folder, tmp_path / "a", format=2))
    with pytest.raises(BadFile, match=r"of a model of type resnet, not simclr_jax: give a folder"):
        simclr_jax.load(changed(folder, tmp_path / "b", model_type="resnet"))
    recipe = documents.read(folder / "config.json", dict)["recipe"]
    deeper = recipe | {"model": recipe["model"] | {"depth": 18}}
    with pytest.raises(BadFile, match=r"arrays of .* not those of its recipe \(layer1.1.* missing"):
        simclr_jax.load(changed(folder, tmp_path / "c", recipe=deeper))
    wider = recipe | {"model": recipe["model"] | {"width": 0.25}}
    with pytest.raises(UserError, match=r"arrays of .* are not those of the network"):
        simclr_jax.load(changed(folder, tmp_path / "d", recipe=wider))
    wrong = recipe | {"model": recipe["model"] | {"depth": 19}}
    with pytest.raises(BadFile, match=r"has no recipe \(model.depth"):
        simclr_jax.load(changed(folder, tmp_path / "e", recipe=wrong))


def test_a_damaged_folder_is_refused(folder, tmp_path):
    place = tmp_path / "x"
    shutil.copytree(folder, place)
    content = bytearray((place / "model.safetensors").read_bytes())
    content[-5] ^= 1
    (place / "model.safetensors").write_bytes(content)
    with pytest.raises(
        BadFile, match=r"model.safetensors was altered since it was written: export"
    ):
        simclr_jax.load(place)
    shutil.copy(folder / "model.safetensors", place)
    (place / "head.safetensors").unlink()
    with pytest.raises(BadFile, match=r"head.safetensors is missing: export it again"):
        simclr_jax.load(place)
    (place / "config.json").write_text((place / "config.json").read_text().replace("7", "8", 1))
    with pytest.raises(BadFile, match="altered since it was written"):
        simclr_jax.load(place)
    (place / "config.json").unlink()
    with pytest.raises(UserError, match=r"has no config.json"):
        simclr_jax.load(place)


def test_the_module_of_a_folder_loads_its_arrays(folder):
    """As the card says, in a process that has nothing of ours."""
    pytest.importorskip("torch", reason="torch is not installed")
    program = """
import sys, torch, encoder
from safetensors.torch import load_file
model = encoder.Encoder().eval()
model.load_state_dict(load_file("model.safetensors"))
print(sorted(model(torch.rand(2, 3, 8, 8))), "simclr_jax" in sys.modules)
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=True
    )
    assert ended.stdout.strip() == "['h', 'logits'] False"
    shutil.rmtree(folder / "__pycache__", ignore_errors=True)


def test_timm_makes_the_model_of_a_folder(tmp_path):
    timm = torch_packages.timm()
    torch = pytest.importorskip("torch", reason="torch is not installed")
    fields = {"model__depth": 18, "model__width": 1.0, "model__stem": "imagenet"}
    fields |= {"model__variant": "torchvision", "data__image_size": 40}
    run = write_run(tmp_path / "run", **fields)
    out = tmp_path / "model"
    export.run(Options(str(run), "huggingface", str(out)), lambda line: None)
    model = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    images = np.random.RandomState(0).uniform(size=(2, 40, 40, 3)).astype(np.float32)
    with torch.inference_mode():
        found = model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    wanted = simclr_jax.load(out).extract(images, ("h",), 2, prepared=True)["h"]
    np.testing.assert_allclose(found, wanted, atol=1e-4 * np.abs(wanted).max())
    assert timm.data.resolve_model_data_config(model)["mean"] == [0.0] * 3


def test_made_a_run_of_it_is_judged_started_from_and_embedded(run, folder, tmp_path):
    """By doors that read runs: they see what `load` sees, of whichever step that was."""
    made = tmp_path / "made"
    convert.run(str(folder), str(made), convert.Options())
    mine, theirs = simclr_jax.load(made), simclr_jax.load(folder)
    for tap in ("h", "z", "head1"):
        np.testing.assert_array_equal(mine(IMAGES, tap=tap), theirs(IMAGES, tap=tap))
    assert (mine.step, mine.preprocessing) == (7, theirs.preprocessing)
    assert mine.classifier[0] == theirs.classifier[0]
    np.testing.assert_array_equal(mine.classifier[1].kernel, theirs.classifier[1].kernel)
    record = json.loads((made / "config.json").read_text())
    assert record["converted"]["flavour"] == "simclr_jax" and record["images"] == []

    write_images(tmp_path / "images.npz", side=8)
    data = Wanted(str(tmp_path / "images.npz"))
    said: list[str] = []
    options = linear_probe.Options(solvers=("knn", "classifier"), cache="none")
    linear_probe.run([str(made)], data, options, said.append)
    assert len(list(made.glob("results/*.json"))) >= 2
    out = tmp_path / "rows.npz"
    embed.run(embed.Options(str(made), str(out), data=data.data, cache="none"), said.append)
    config = tiny.recipe(init__run=str(made), head__layers=3)
    state = tiny.make_stage(tiny.recipe(seed=3, head__layers=3), 1)[0].init()
    found = manifest.named_leaves(load_parts(config.init, state))
    there = saved.read(str(run)).leaves
    for name in ("params/encoder/stem_conv/conv/kernel", "params/head/dense1/kernel"):
        np.testing.assert_array_equal(found[name], there[name])


def test_a_folder_in_the_place_of_a_run_says_how_it_becomes_one(folder, tmp_path):
    remedy = f"is a model folder, and no run yet: make one of it by .* --source={folder} --workdir"
    with pytest.raises(UserError, match=f"--checkpoint={folder} {remedy}"):
        linear_probe.run([str(folder)], Wanted(), linear_probe.Options())
    with pytest.raises(UserError, match=f"init.run={folder} {remedy}"):
        load_parts(tiny.recipe(init__run=str(folder)).init, None)
    with pytest.raises(UserError, match="--checkpoint=hf://a/b is a model folder"):
        embed.run(embed.Options("hf://a/b", str(tmp_path / "x.npz")))
    with pytest.raises(UserError, match="--tap=1 is for weights of other programs, and"):
        convert.run(str(folder), str(tmp_path / "run"), convert.Options(tap=1))
    with pytest.raises(UserError, match=r"weights=average, but .* is a model folder"):
        simclr_jax.load(folder, weights="average")
