"""What leaves a run: files that other programs read, with the features of the run itself."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stages.written import write_run

import simclr_jax
from simclr_jax import documents
from simclr_jax.errors import Unreachable, UserError
from simclr_jax.interop import export, libraries, network
from simclr_jax.interop.export import FORMATS, Options
from simclr_jax.train import saved
from simclr_jax.train.checkpoints import Checkpoints

IMAGES = np.random.RandomState(3).randint(0, 256, (5, 13, 11, 3)).astype(np.uint8)
HOME = "/home/somebody/photographs"
OF_NETWORK = re.compile("(params|batch_stats)/(encoder|head)/")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    fields = {"data__source": "folder", "data__path": HOME}
    return write_run(tmp_path_factory.mktemp("run"), **fields)


def exported(run, kind, out, *taps, **options) -> list[str]:
    """Export, and return what was said."""
    said: list[str] = []
    export.run(Options(str(run), kind, str(out), taps, **options), said.append)
    return said


def with_extra(run, place, **parts):
    """Copy a run, with more arrays in its checkpoint."""
    read = saved.read(str(run))
    leaves = {name: x for name, x in read.leaves.items() if not name.startswith("opt_state")}
    checkpoints = Checkpoints(place / "checkpoints")
    checkpoints.save(read.step, leaves | parts)
    checkpoints.close()
    documents.write(place / "config.json", dict(read.record))
    return place


def test_numpy_has_the_arrays_of_the_checkpoint(workdir, tmp_path):
    said = exported(workdir, "numpy", tmp_path / "x.npz", "h", "z")
    leaves = saved.read(str(workdir)).leaves
    with np.load(tmp_path / "x.npz", allow_pickle=False) as archive:
        found = dict(archive)
    about = json.loads(str(found.pop("about")))
    assert found.keys() == {name for name in leaves if OF_NETWORK.match(name)}
    for name, x in found.items():
        np.testing.assert_array_equal(x, leaves[name])
    assert (about["step"], about["taps"]) == (7, ["h", "z"])
    assert about["recipe"]["model"]["depth"] == 10
    assert HOME not in json.dumps(about)
    assert any(line.startswith("differs   by 0.0e+00 of the largest number of z") for line in said)


def test_stablehlo_runs_without_us(workdir, tmp_path):
    """Images of any number; with preprocessing inside, what `load` makes of images on the host."""
    exported(workdir, "stablehlo", tmp_path / "x", "z", "group2", preprocess="13x11")
    content = (tmp_path / "x" / "model.stablehlo").read_bytes()
    program = jax.export.deserialize(bytearray(content))
    encoder = simclr_jax.load(workdir)
    for count in (1, 5):
        found = program.call(jnp.asarray(IMAGES[:count]))
        for tap in ("z", "group2"):
            wanted = encoder(IMAGES[:count], tap=tap)
            np.testing.assert_allclose(found[tap], wanted, atol=2e-5 * np.abs(wanted).max())
    assert set(program.platforms) == {"cpu", "cuda", "rocm", "tpu"}


def test_an_average_leaves_in_the_place_of_the_trained_weights(workdir, tmp_path):
    leaves = saved.read(str(workdir)).leaves
    average = {
        f"extra/target/{n}": x + np.float32(0.1) for n, x in leaves.items() if OF_NETWORK.match(n)
    }
    run = with_extra(workdir, tmp_path / "run", **average)
    exported(run, "numpy", tmp_path / "x.npz", "z", weights="average")
    with np.load(tmp_path / "x.npz") as archive:
        name = "params/head/dense1/kernel"
        np.testing.assert_array_equal(archive[name], leaves[name] + np.float32(0.1))
    with pytest.raises(UserError, match=r"--tap .*logits"):  # of features that the average has not
        exported(run, "numpy", tmp_path / "y.npz", "logits", weights="average")
    with pytest.raises(UserError, match=r"--weights=average, but .* keeps no moving average"):
        exported(workdir, "numpy", tmp_path / "y.npz", weights="average")


def test_a_classifier_leaves_with_a_run_on_labels(workdir, tmp_path):
    random = np.random.default_rng(5)
    dense = {
        "params/classifier/dense/kernel": random.normal(size=(32, 3)).astype(np.float32),
        "params/classifier/dense/bias": random.normal(size=3).astype(np.float32),
    }
    run = with_extra(workdir, tmp_path / "run", **dense)
    exported(run, "stablehlo", tmp_path / "x")
    program = jax.export.deserialize(bytearray((tmp_path / "x/model.stablehlo").read_bytes()))
    view = IMAGES[:2, :8, :8].astype(np.float32) / 255
    found = program.call(view)
    h = simclr_jax.load(run)(view)
    kernel, bias = dense.values()
    np.testing.assert_allclose(found["logits"], h @ kernel + bias, atol=1e-4)
    # The probe beside pretraining leaves where it is asked for.
    exported(workdir, "numpy", tmp_path / "probe.npz", "logits")
    with np.load(tmp_path / "probe.npz") as archive:
        leaves = saved.read(str(workdir)).leaves
        np.testing.assert_array_equal(
            archive["params/classifier/dense/kernel"], leaves["params/probe/dense/kernel"]
        )


def test_what_differs_is_not_kept(workdir, tmp_path, monkeypatch):
    form = FORMATS["numpy"]

    def off(path, leaving, images):
        found = form.run(path, leaving, images)
        return {tap: x + 2e-4 * np.abs(x).max() for tap, x in found.items()}

    monkeypatch.setitem(FORMATS, "numpy", dataclasses.replace(form, run=off))
    with pytest.raises(
        UserError, match=r"differs by 0.0002 of the largest number of h, of at most"
    ):
        exported(workdir, "numpy", tmp_path / "x.npz")
    assert not list(tmp_path.iterdir())


MISTAKES = [
    ({"format": "coreml"}, r'--format is "coreml"'),
    ({"out": "x.zip"}, r"--out=.*x.zip must end in .npz"),
    ({"out": "there.npz"}, r"--out=.* is there already: remove it"),
    ({"out": "nowhere/x.npz"}, r"--out=.* cannot be written"),
    ({"out": "gs://bucket/x.npz"}, r"is not on this machine"),
    ({"taps": ("h", "head9")}, r'--tap is "head9"'),
    ({"taps": ("pixels",)}, r'--tap is "pixels"'),
    ({"weights": "best"}, r'--weights is "best"'),
    ({"preprocess": "50x41"}, r"--format=numpy holds no preprocessing: choose onnx, stablehlo"),
    ({"format": "stablehlo", "out": "x", "preprocess": "50"}, r"50 is no size: give HEIGHTxWIDTH"),
    ({"format": "stablehlo", "out": "x", "preprocess": "0x9"}, r"0x9 is no size"),
    ({"loads_in": "timm"}, r"--loads_in=timm is of --format=torch"),
    ({"loads_in": "keras"}, r'--loads_in is "keras"'),
    ({"checkpoint": "{place}"}, r"holds no checkpoints: give the workdir of a run"),
]


@pytest.mark.parametrize("fields, message", MISTAKES)
def test_mistakes_end_in_one_line_before_anything_is_written(workdir, tmp_path, fields, message):
    (tmp_path / "there.npz").write_bytes(b"")
    given = {"checkpoint": str(workdir), "format": "numpy", "out": "x.npz", **fields}
    if "://" not in given["out"]:
        given["out"] = str(tmp_path / given["out"])
    given["checkpoint"] = given["checkpoint"].format(place=tmp_path)
    with pytest.raises(UserError, match=message) as raised:
        export.run(Options(**given), lambda line: None)
    assert "\n" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["there.npz"]


def test_a_resize_by_opencv_cannot_leave_but_its_crop_can(tmp_path):
    run = write_run(tmp_path / "run", augment__grid="opencv", data__image_size=40)
    with pytest.raises(UserError, match=r"OpenCV .* give --preprocess=46x46, which is only crop"):
        exported(run, "stablehlo", tmp_path / "x", preprocess="64x64")
    pytest.importorskip("cv2", reason="OpenCV is not installed")
    exported(run, "stablehlo", tmp_path / "x", preprocess="46x46")
    program = jax.export.deserialize(bytearray((tmp_path / "x/model.stablehlo").read_bytes()))
    images = np.random.RandomState(1).randint(0, 256, (2, 46, 46, 3), np.uint8)
    wanted = simclr_jax.load(run)(images)
    np.testing.assert_allclose(program.call(images)["h"], wanted, atol=1e-5 * wanted.max())


def test_a_damaged_run_is_refused(workdir, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(workdir, run)
    for file in (run / "checkpoints" / "7").rglob("*"):
        if file.is_file() and file.stat().st_size > 1000:
            file.write_bytes(file.read_bytes()[:-100] + bytes(100))
    with pytest.raises(UserError, match="whole checkpoint"):
        exported(run, "numpy", tmp_path / "x.npz")
    assert not (tmp_path / "x.npz").exists()


@pytest.mark.parametrize(
    "kind, package",
    [
        ("torch", "torch"),
        ("onnx", "onnxruntime"),
        ("safetensors", "safetensors"),
        ("huggingface", "safetensors"),
        ("savedmodel", "tensorflow"),
    ],
)
def test_a_missing_package_is_said_in_one_line(workdir, tmp_path, monkeypatch, kind, package):
    needed = {"onnx": ("torch", "onnx", "onnxscript")}.get(kind, ())
    for name in needed:  # there, whatever is installed
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, package, None)
    suffix = (FORMATS[kind].suffixes or ("",))[0]
    with pytest.raises(UserError, match=rf"needs {package}, which is not .*: pip install .*") as e:
        exported(workdir, kind, tmp_path / f"x{suffix}")
    assert package in str(e.value).rpartition("pip install")[2].split()


@pytest.mark.parametrize(
    "fields, library, words",
    [
        ({"model__depth": 10}, "torchvision", "has no ResNet-10: use encoder.py"),
        ({"model__depth": 18}, "timm", "its channels are not 0.0625 times as many"),
        ({"model__depth": 18, "model__width": 1.0}, "timm", "its stem is 7x7 with a pool"),
    ],
)
def test_what_a_library_cannot_load_is_said_with_the_remedy(tmp_path, fields, library, words):
    """By the recipe alone, so the arrays may be of any network."""
    assert words in str(libraries.match(leaving(**fields), library))


def leaving(taps=("h",), **fields):
    """Return a network as far as `libraries.match` looks at it."""
    from train import tiny

    stub = types.SimpleNamespace(config=tiny.recipe(**fields), channels=3, classifier=None)
    return network.Network(stub, taps, "trained", None, {}, "")  # type: ignore[arg-type]


def test_where_the_architectures_coincide():
    plain = {"model__width": 1.0, "model__stem": "imagenet"}
    theirs = {**plain, "model__variant": "torchvision"}

    def said(library="torchvision", taps=("h",), **fields):
        return str(libraries.match(leaving(taps, **fields), library))

    for depth in (18, 34, 50, 101, 152):
        equal = f"by torchvision resnet{depth}, with equal features"
        assert said(model__depth=depth, **theirs) == equal
        official = said(model__depth=depth, **plain)
        if depth < 50:
            assert official.startswith("not by torchvision: its first group has no shortcut")
        else:
            assert official.startswith(
                f"by torchvision resnet{depth}, with other features: its max"
            )
        assert "train with --config.model.variant=torchvision" in official
    assert said("timm", model__depth=200, **theirs) == "by timm resnet200, with equal features"
    excited = {**theirs, "model__depth": 50, "model__se_ratio": 0.25}
    assert said("timm", **excited) == "by timm seresnet50, with equal features"
    assert said(**excited).startswith("not by torchvision: it has no such squeeze-excitation")
    selective = {**plain, "model__depth": 50, "model__sk_ratio": 0.0625}
    assert "no selective kernels" in said(**selective)
    assert "no projection head" in said(taps=("h", "z"), model__depth=50, **theirs)
    assert "adds 1e-05, not 0.001" in said(model__depth=50, bn__epsilon=1e-3, **theirs)
    assert "3 channels" in said(model__depth=50, model__input="lightness", **theirs)


def test_the_hub_is_asked_for_a_folder(monkeypatch):
    asked = types.ModuleType("huggingface_hub")
    calls = []

    def snapshot_download(name, revision, allow_patterns):
        calls.append((name, revision))
        raise ConnectionError("no route\nto host")

    asked.snapshot_download = snapshot_download  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", asked)
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    with pytest.raises(Unreachable, match=r"hf://a/b@v1 cannot be fetched \(no route\): .*network"):
        simclr_jax.load("hf://a/b@v1")
    assert calls == [("a/b", "v1")]
    with pytest.raises(UserError, match=r"hf://b names no model: give hf://ORGANISATION/NAME"):
        simclr_jax.load("hf://b")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"hf:// needs huggingface_hub, which is not .*: pip inst"):
        simclr_jax.load("hf://a/b")


@pytest.mark.slow
def test_tensorflow_runs_a_saved_model(workdir, tmp_path):
    """Of any number of images, with preprocessing inside, against what `load` makes of them."""
    tf = pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
    exported(workdir, "savedmodel", tmp_path / "x", "h", "logits", preprocess="13x11")
    model = tf.saved_model.load(str(tmp_path / "x"))
    encoder = simclr_jax.load(workdir)
    for count in (1, 5):
        found = model(tf.constant(IMAGES[:count]))
        assert set(found) == {"h", "logits"}
        wanted = encoder(IMAGES[:count])
        np.testing.assert_allclose(found["h"], wanted, atol=2e-5 * np.abs(wanted).max())
    assert json.loads((tmp_path / "x" / "about.json").read_text())["step"] == 7
