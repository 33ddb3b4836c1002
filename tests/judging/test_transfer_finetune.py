"""Fine-tuning a tiny run on a tiny data set by a grid of 2 x 2: chosen, killed, continued."""

from __future__ import annotations

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from train import tiny

from simclr_jax import documents
from simclr_jax.data.sources.arrays import Images
from simclr_jax.data.sources.together import Together
from simclr_jax.errors import Diverged, UserError
from simclr_jax.judging import datasets, transfer_finetune
from simclr_jax.judging.datasets import Wanted
from simclr_jax.judging.transfer_finetune import Grid
from simclr_jax.stages import build
from simclr_jax.stages import run as runs
from simclr_jax.train import saved
from simclr_jax.train.checkpoints import Checkpoints
from simclr_jax.train.stage import TrainState

GRID = Grid(rates=(0.001, 0.05), decays=(0.0, 1e-4), steps=4, batch=16)
PARTS = {"train": 36, "val": 24, "test": 30}
CLASSES = "abc"
RUNS = ["lr0.001-wd0", "lr0.001-wd0.0001", "lr0.05-wd0", "lr0.05-wd0.0001"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "toys"
    for seed, (split, count) in enumerate(PARTS.items()):
        random = np.random.RandomState(seed)
        for i in range(count):
            label = min(i % 4, 2)  # one class is twice as frequent
            pixels = np.clip(60 + 60 * label + random.randint(-90, 90, (12, 14, 3)), 0, 255)
            path = root / split / CLASSES[label] / f"{i:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    return root


def first_run(workdir):
    """Return the workdir of a run with a verified checkpoint of first values."""
    config = tiny.recipe()
    variables = build.first_variables(config, 3)
    checkpoints = Checkpoints(workdir / "checkpoints")
    state = TrainState(jnp.int32(4), variables["params"], variables["batch_stats"], {})
    checkpoints.save(4, state)
    checkpoints.close()
    documents.write(workdir / "config.json", config.to_dict())
    return workdir


def sweep(workdir, data, grid=GRID):
    said: list[str] = []
    code = transfer_finetune.run(
        str(workdir), sets=[], others=[str(data)], grid=grid, say=said.append
    )
    return code, "\n".join(said)


def ledger(workdir):
    (path,) = workdir.glob("transfer/*/sweep.json")
    return {name: run["score"] for name, run in json.loads(path.read_text())["runs"].items()}


def best(scores):
    return max(RUNS, key=lambda name: scores[name])  # of equal ones the first


def content(workdir):
    """Return the result, its arrays, and what the grid has scored."""
    (path,) = workdir.glob("results/transfer-finetune-*.json")
    arrays = dict(np.load(path.with_suffix(".npz")))
    return json.loads(path.read_text()), arrays, ledger(workdir)


@pytest.fixture(scope="module")
def straight(tmp_path_factory, data):
    workdir = first_run(tmp_path_factory.mktemp("straight"))
    code, said = sweep(workdir, data)
    assert code == 0
    return workdir, said


@pytest.mark.slow
def test_each_run_has_its_rate_and_the_decay_divided_by_it(straight):
    workdir, _ = straight
    (place,) = workdir.glob("transfer/*")
    assert sorted(p.name for p in place.iterdir()) == sorted(
        [*RUNS, f"final-{best(ledger(workdir))}", "sweep.json"]
    )
    for name in RUNS:
        config = json.loads((place / name / "config.json").read_text())
        rate, decay = (float(part[2:]) for part in name.split("-", 1))
        optim = config["optim"]
        assert (optim["name"], optim["base_lr"], optim["nesterov"]) == ("sgd", rate, True)
        assert optim["weight_decay"] == pytest.approx(decay / rate)
        assert config["bn"]["momentum"] == 0.9  # 36 images: fewer than 10 steps an epoch
        assert config["train"]["steps"] == 4 and config["train"]["batch_size"] == 16
        assert not (place / name / "checkpoints").exists()  # their scores are kept


@pytest.mark.slow
def test_the_best_on_validation_images_is_trained_on_them_too_and_scored_on_test_images(
    straight, data
):
    workdir, said = straight
    result, arrays, scores = content(workdir)
    (place,) = workdir.glob("transfer/*")
    for name, score in scores.items():
        summary = json.loads((place / name / "results" / "summary.json").read_text())
        assert summary["scores"]["classifier"]["top-1"]["accuracy"] == score
        assert summary["protocol"]["held_out_images"] == PARTS["val"]
    chosen, name = result["protocol"]["chosen"], best(scores)
    assert f"lr{chosen['rate']:g}-wd{chosen['decay']:g}" == name
    assert chosen["top-1 on validation"] == scores[name]

    final = saved.read(str(place / f"final-{name}"))
    assert final.config.optim.base_lr == chosen["rate"]
    summary = json.loads((place / f"final-{name}" / "results" / "summary.json").read_text())
    assert summary["protocol"]["held_out_images"] == PARTS["test"]
    counts = [one["labels"]["count"] for one in final.record["trained_on"] if not one["run"]]
    assert counts == [PARTS["train"], PARTS["val"]]
    with pytest.raises(UserError, match=r"final-.* trained on images of val of .*toys"):
        datasets.open_data(final.config, final.workdir, Wanted(eval_split="val"))
    ours = result["scores"]["top-1"]["value"]
    assert ours == pytest.approx(summary["scores"]["classifier"]["top-1"]["accuracy"])
    assert ours == pytest.approx(np.mean(arrays["predictions"] == arrays["labels"]))
    assert len(arrays["labels"]) == PARTS["test"]
    assert result["level"]["scores"]["top-1"]["value"] == pytest.approx(
        np.mean(arrays["labels"] == 2)
    )
    assert "the commonest class" in said and "transfer-finetune" in said


@pytest.mark.slow  # eight runs, each of which compiles its step
def test_killed_anywhere_and_given_again_it_ends_as_straight(straight, data, tmp_path, monkeypatch):
    """Killed in a run, after a run but before its score is kept, and in the final run."""
    workdir = first_run(tmp_path)
    real, calls = runs.run, []

    def dying(config, path, **how):
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt  # before it has saved
        code = real(config, path, **how)
        if len(calls) in (4, 6):
            raise KeyboardInterrupt  # it is done, and nobody knows
        return code

    monkeypatch.setattr(transfer_finetune.runs, "run", dying)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            sweep(workdir, data)
    code, _ = sweep(workdir, data)
    assert code == 0
    # Four of the grid and the final one, and once more each that was killed.
    assert len(calls) == 5 + 3
    (result, arrays, scores), (want, wanted, wanted_scores) = map(content, (workdir, straight[0]))
    assert scores == wanted_scores
    assert result["protocol"]["chosen"] == want["protocol"]["chosen"]
    assert result["scores"] == want["scores"]
    for name, array in wanted.items():
        np.testing.assert_array_equal(arrays[name], array)
    places = [next(where.glob("transfer/*/final*")) for where in (workdir, straight[0])]
    one, other = (saved.read(str(place)) for place in places)
    for name, leaf in other.leaves.items():
        np.testing.assert_array_equal(one.leaves[name], leaf, err_msg=name)


@pytest.mark.slow
def test_a_ledger_that_is_gone_is_made_again_from_the_runs(straight, data, tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    shutil.copytree(straight[0], workdir)
    (path,) = workdir.glob("transfer/*/sweep.json")
    path.unlink()
    real, calls = runs.run, []

    def counted(config, path, **how):
        calls.append(path)
        return real(config, path, **how)

    monkeypatch.setattr(transfer_finetune.runs, "run", counted)
    assert sweep(workdir, data)[0] == 0
    assert len(calls) == 1 and "/final-" in calls[0]  # which says once more what it has found
    assert ledger(workdir) == ledger(straight[0])
    assert content(workdir)[0]["scores"] == content(straight[0])[0]["scores"]


@pytest.mark.slow
def test_a_run_that_diverges_is_left_aside_and_a_stop_is_handed_on(
    straight, data, tmp_path, monkeypatch
):
    workdir = tmp_path / "run"
    shutil.copytree(straight[0], workdir, ignore=shutil.ignore_patterns("transfer", "results"))
    real = runs.run

    def at_high_rates(config, path, **how):
        if config.optim.base_lr > 0.01:
            raise Diverged("the loss is not finite")
        return 75 if "/final-" in path else real(config, path, **how)

    monkeypatch.setattr(transfer_finetune.runs, "run", at_high_rates)
    code, said = sweep(workdir, data, Grid((0.001, 0.05), (0.0,), 2, 16))
    assert code == 75 and "the same command continues" in said
    assert ledger(workdir)["lr0.05-wd0"] is None
    assert "final run: rate 0.001" in said
    assert not list(workdir.glob("results/transfer*"))


def test_splits_together_are_their_examples_one_after_another():
    def part(first, count):
        numbers = np.arange(first, first + count)
        pixels = np.broadcast_to(numbers[:, None, None, None], (count, 2, 2, 3)).astype(np.uint8)
        return Images(pixels, numbers.astype(np.int32) % 3, 3)

    both = Together((part(0, 5), part(5, 4)))
    assert len(both) == 9 and both.classes == 3
    assert [int(both.example(i)[0][0, 0, 0]) for i in range(9)] == list(range(9))
    assert [both.example(i)[1] for i in range(9)] == both.labels.tolist() == [0, 1, 2] * 3
    some = both.take(np.array([7, 1, 8])).take(np.array([0, 2]))
    assert [int(some.example(i)[0][0, 0, 0]) for i in range(2)] == [7, 8]
    assert some.labels.tolist() == [1, 2]
    prints = {both.take(np.array(rows)).fingerprint() for rows in ([7, 1], [1, 6], [1, 2])}
    assert len(prints | {both.fingerprint()}) == 4
