"""Transfer of a tiny encoder that was never trained to tiny data sets under their real names."""

from __future__ import annotations

import io
import json

import jax.numpy as jnp
import numpy as np
import pytest
from judging import by_hand
from PIL import Image
from train import tiny

from simclr_jax import documents
from simclr_jax.errors import UserError
from simclr_jax.judging import transfer, transfer_sets
from simclr_jax.stages import build, preprocessing
from simclr_jax.stages.encoder import Encoder
from simclr_jax.train import saved
from simclr_jax.train.checkpoints import Checkpoints
from simclr_jax.train.stage import TrainState

library = pytest.importorskip("tensorflow_datasets")
from data.test_tfds import prepare  # noqa: E402

SEED = 4
PARTS = {"train": 36, "val": 18, "test": 15}


def photographs(count, seed):
    """Return images `[30, 40, 3]` and their labels, which their brightness tells but for a few."""
    random = np.random.RandomState(seed)
    labels = np.arange(count) % 3
    level = 80 + 50 * np.where(random.rand(count) < 0.2, 2 - labels, labels)
    noise = random.randint(-80, 80, (count, 6, 8, 3))
    pixels = np.clip(level[:, None, None, None] + noise, 0, 255).astype(np.uint8)
    return pixels.repeat(5, axis=1).repeat(5, axis=2), labels


def encoded(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return the workdir of a run with a verified checkpoint of first values."""
    config, workdir = tiny.recipe(), tmp_path_factory.mktemp("run")
    variables = build.first_variables(config, 3)
    checkpoints = Checkpoints(workdir / "checkpoints")
    state = TrainState(jnp.int32(4), variables["params"], variables["batch_stats"], {})
    checkpoints.save(4, state)
    checkpoints.close()
    documents.write(workdir / "config.json", config.to_dict())
    return workdir


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Return a directory with `aircraft`, `other` like it and, of the same images, VOC by TFDS."""
    root = tmp_path_factory.mktemp("data")
    kinds = library.features.Sequence(library.features.ClassLabel(num_classes=3))
    features = {"image": library.features.Image(), "labels": kinds, "labels_no_difficult": kinds}
    splits = {}
    for seed, (split, count) in enumerate(PARTS.items()):
        rows = []
        for i, (pixels, label) in enumerate(zip(*photographs(count, seed), strict=True)):
            path = root / "aircraft" / split / "abc"[label] / f"{i:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(pixels))
            both = {"labels": [label, 2], "labels_no_difficult": [label]}
            rows.append({"image": path.read_bytes(), **both})
        splits["validation" if split == "val" else split] = rows
    prepare(root, "voc", features, splits, config="2007", configs=("2007",))
    (root / "other").symlink_to(root / "aircraft")
    return root


@pytest.fixture(scope="module")
def said(run, data_dir):
    """Return what was said when all of it was evaluated."""
    lines = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preprocessing, "WHOLE", 4)  # or views of 8 pixels would be whole anyway
        sets, others = ["aircraft", "voc2007", "birdsnap"], [str(data_dir / "other")]
        transfer.run(str(run), str(data_dir), sets, others, seed=SEED, say=lines.append)
    return "\n".join(lines)


def read(run, name):
    if name == "other":  # the tag tells it from another directory of that name
        (path,) = run.glob("results/transfer-other-*.npz")
        name = path.stem.removeprefix("transfer-").removesuffix(f"-seed{SEED}")
    name = f"{name}-seed{SEED}"
    with np.load(run / f"results/transfer-{name}.npz") as arrays:
        result = json.loads((run / f"results/transfer-{name}.json").read_text())
        return result, dict(arrays)


def test_the_penalty_is_chosen_on_validation_images_which_then_are_learned_from(run, said):
    result, arrays = read(run, "aircraft")
    assert result["metric"] == "mean per class" and result["solver"] == "lbfgs"
    assert result["protocol"]["preprocessing"]["proportion"] == 1
    images = {role: result["data"][role]["images"] for role in ("fit", "validation", "test")}
    assert list(images.values()) == list(PARTS.values())

    kept = {json.loads(p.read_text())["data"]: p.parent for p in run.glob("features/*/about.json")}
    parts = [
        np.load(kept[result["data"][role]["fingerprint"]] / "h-00000.npz")["x"].astype(float)
        for role in images
    ]
    x = np.concatenate(parts[:2])
    y = np.concatenate([np.sort(photographs(n, s)[1]) for s, n in enumerate(PARTS.values())])
    rows = np.split(np.arange(len(x)), [PARTS["train"]])
    tried, answer = by_hand.choose_penalty(x, y[: len(x)], 3, [rows], by_hand.mean_per_class)
    chosen, best = result["protocol"]["chosen"], by_hand.best(tried["choose"])
    assert chosen["penalty"] == pytest.approx(best)
    assert chosen["mean per class on validation"] == pytest.approx(tried["choose"][best])
    assert 0.4 < tried["choose"][best] < 0.95
    np.testing.assert_array_equal(arrays["labels"], y[len(x) :])
    by_hand.same_as_likeliest(arrays["predictions"], answer(best, parts[2]))
    splits = [result["data"][role]["split"] for role in images]
    assert splits == ["train", "validation, official", "test"] and result["seed"] == SEED
    expected = by_hand.intervals(arrays["labels"], arrays["predictions"], SEED)
    for name, score in expected.items():
        assert result["scores"][name] == pytest.approx(score)


def test_ours_stands_among_the_published_rows(run, said):
    result, arrays = read(run, "aircraft")
    right = arrays["predictions"] == arrays["labels"]
    per_class = np.mean([right[arrays["labels"] == label].mean() for label in (0, 1, 2)])
    assert result["scores"]["mean per class"]["value"] == pytest.approx(per_class)
    assert result["published"]["SimCLR"] == 0.503 and len(result["notes"]) == 2
    voc = read(run, "voc2007")[0]
    own = voc["scores"]["11-point mAP"]["value"]
    places = [
        1 + sum(value > score for value in one["published"].values())
        for one, score in ((result, per_class), (voc, own))
    ]
    (row,) = (line.split() for line in said.splitlines() if line.startswith("this encoder"))
    assert row[2:] == [f"{100 * x:.1f}" for x in (per_class, own)] + [f"{np.mean(places):.1f}"]
    assert "aircraft*" in said and "3 classes; published: 100" in said
    assert "left out  birdsnap" in said and "birdsnap/train|val|test/CLASS/*.jpg" in said


def test_several_labels(run, said):
    result, arrays = read(run, "voc2007")
    assert result["metric"] == "11-point mAP" and result["data"]["classes"] == 3
    # The last class is in every image, but in those of the others only as a difficult object.
    expected = np.eye(3)[photographs(PARTS["test"], 2)[1]]
    expected[expected[:, 2] == 0, 2] = -1
    np.testing.assert_array_equal(arrays["labels"], expected)
    assert arrays["scores"].shape == (15, 3)
    value = by_hand.eleven_points(arrays["scores"], expected)
    assert result["scores"]["11-point mAP"]["value"] == pytest.approx(value)

    kept = {json.loads(p.read_text())["data"]: p.parent for p in run.glob("features/*/about.json")}
    roles = ("fit", "validation", "test")
    x = [np.load(kept[result["data"][r]["fingerprint"]] / "h-00000.npz")["x"] for r in roles]
    labels = []
    for seed, count in enumerate(PARTS.values()):
        own = np.eye(3)[photographs(count, seed)[1]]
        own[own[:, 2] == 0, 2] = -1
        labels.append(own.astype(int))
    chosen = result["protocol"]["chosen"]
    rows = np.split(np.arange(sum(map(len, labels[:2]))), [PARTS["train"]])
    tried, answer = by_hand.choose_penalty(
        np.concatenate(x[:2]), np.concatenate(labels[:2]), 3, [rows], by_hand.eleven_points
    )
    best = max(tried["choose"].values())
    # Fits that end a little earlier rank two neighbours in another order.
    assert chosen["11-point mAP on validation"] == pytest.approx(best, abs=0.01)
    (penalty,) = (p for p in tried["choose"] if p == pytest.approx(chosen["penalty"]))
    assert tried["choose"][penalty] == pytest.approx(best, abs=0.01)
    answers = answer(penalty, x[2])[:, :2]
    np.testing.assert_allclose(arrays["scores"][:, :2], answers, atol=0.01 * np.abs(answers).max())


def test_any_other_data(run, said):
    result, _ = read(run, "other")
    assert result["published"] == {} and result["metric"] == "top-1"
    assert result["data"]["validation"]["images"] == PARTS["val"]


def test_the_encoder_of_the_run_is_left_alone(run, tmp_path, monkeypatch):
    """It looks at whole images here, and forgives more of them."""
    read = saved.read(str(run))
    known, whole = Encoder.of(read), []
    before, preprocessing = read.config.to_dict(), known.preprocessing
    monkeypatch.setattr(Encoder, "of", lambda *_: known)
    changed = Encoder.changed
    monkeypatch.setattr(
        Encoder, "changed", lambda *given: whole.append(changed(*given)) or whole[-1]
    )
    with pytest.raises(UserError, match="none of 1 data set"):
        transfer.run(
            str(run), str(tmp_path), ["birdsnap"], max_bad_fraction=0.5, say=lambda line: None
        )
    (used,) = whole
    assert used.config.data.max_bad_fraction == 0.5 and used.preprocessing.proportion == 1
    assert known.config.to_dict() == before and known.preprocessing is preprocessing


def test_what_cannot_be_evaluated_ends_in_one_line(run, data_dir, tmp_path):
    with pytest.raises(UserError, match=r"none of 1 data set.*birdsnap is no directory") as told:
        transfer.run(str(run), str(tmp_path), ["birdsnap"], say=lambda line: None)
    assert "\n" not in str(told.value)
    with pytest.raises(UserError, match=r'--sets is "dtp" \(did you mean "dtd"\?\)'):
        transfer.run(str(run), str(tmp_path), ["dtp"])
    assert "dtd" in transfer_sets.NAMES
