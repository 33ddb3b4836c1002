"""A run of every method: killed and continued, planned, reported, embedded, judged, fine-tuned.

None is known here by name; `smallest.py` has their smallest recipes. One run of each, of an
encoder that compiles at once, serves all tests.
"""

from __future__ import annotations

import dataclasses
import functools
import signal
from typing import Any

import jax
import logged
import numpy as np
import pytest
import smallest
from frame import toys
from recipes.freeze import resolved
from stages.written import write_images
from train import tiny

import simclr_jax
from simclr_jax import declaration, parallel
from simclr_jax.augment.resize import to_float
from simclr_jax.embedding import embed, embeddings
from simclr_jax.frame import modules
from simclr_jax.judging import linear_probe
from simclr_jax.judging.datasets import Wanted
from simclr_jax.judging.solvers import Settings
from simclr_jax.planning import plan
from simclr_jax.reporting import record, report
from simclr_jax.stages import run
from simclr_jax.train import loop, saved

STEPS, SAVED, KILLED = 6, 4, 5  # of 3 in an epoch: it goes on within one, and repeats a step
SIDE = 8  # of images, which no evaluation then has to resize

pytestmark = pytest.mark.slow


class Kill(Exception):
    """What ends a run at a point where nothing is prepared for it."""


@pytest.fixture(scope="module", autouse=True)
def small():
    """Replace the encoder by that one, and train on one device."""
    make_mesh = parallel.make_mesh
    with toys.known(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "make_mesh", lambda devices=1: make_mesh(devices))
        yield


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """An archive of 48 images to learn from and 24 held out, and its arrays."""
    path = tmp_path_factory.mktemp("images") / "images.npz"
    return path, write_images(path, count=tiny.BATCH * tiny.STEPS, side=SIDE)


def recipe(method, images, **fields):
    fixed = {"data__source": "memory", "data__path": str(images[0]), "train__steps": STEPS}
    fixed |= {"checkpoint__every_steps": SAVED, "log__every_steps": 1, "optim__base_lr": 0.01}
    fixed |= {"eval__knn": False, "eval__compare": False}  # which other tests look at
    return smallest.recipe(method, **{**fixed, **fields})


@dataclasses.dataclass(frozen=True)
class Trained:
    """A run that was killed once and then came to its end."""

    method: str
    workdir: Any
    config: Any


# With local crops two are asked: one that keeps an average of its network, one that keeps nothing.
@pytest.fixture(scope="module", params=[*smallest.METHODS, *smallest.WITH_LOCAL[:2]])
def trained(request, images, tmp_path_factory):
    config = recipe(request.param, images)
    method, workdir = config.method, tmp_path_factory.mktemp("method") / "run"

    def killed(stage, *others):
        def batches(first, last):
            for steps, batch in stage.batches(first, last):
                if steps[0] == KILLED:
                    raise Kill
                yield steps, batch

        return loop.train(dataclasses.replace(stage, batches=batches), *others)

    with pytest.raises(Kill):
        run.run(config, str(workdir), by=killed)
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == [str(SAVED)]
    assert run.run(config, str(workdir), resume="must") == 0
    return Trained(method, workdir, config)


def test_killed_and_continued_is_the_run_that_was_not(trained, tmp_path):
    def stopped(*arguments):
        result = loop.train(*arguments)
        return dataclasses.replace(result, stopped_by=signal.SIGTERM)  # nothing is judged

    straight = tmp_path / "run"
    assert run.run(trained.config, str(straight), by=stopped) == run.EXIT_CODES[signal.SIGTERM]
    found, want = (saved.read(f"{path}@{STEPS}").leaves for path in (trained.workdir, straight))
    assert found.keys() == want.keys()
    for name, leaf in want.items():
        assert np.asarray(leaf).tobytes() == np.asarray(found[name]).tobytes(), name
    losses = [
        [line for line in logged.lines(path) if "loss" in line]
        for path in (trained.workdir, straight)
    ]
    assert losses[0] == losses[1] and [line["step"] for line in losses[0]] == [1, 2, 3, 4, 5, 6]


def test_plan_counts_what_the_run_keeps(trained, capsys, monkeypatch):
    """Each row of its state is the bytes of that part of the checkpoint; the peak is above them."""
    rows = {
        "parameters": "params/",
        "statistics": "batch_stats/",
        "optimiser": "opt_state/",
        "averages, queues": "extra/",
    }
    leaves = saved.read(str(trained.workdir)).leaves
    sizes = {
        row: sum(np.asarray(x).nbytes for name, x in leaves.items() if name.startswith(prefix))
        for row, prefix in rows.items()
    }
    kept = {row: size for row, size in sizes.items() if size}
    monkeypatch.setattr(plan, "CHANGES", ())  # of the recipe as it is
    found = plan.run(trained.config, plan.Asked("h100", 1))
    assert found["state"] == kept
    assert found["estimated"]["state"] == sum(kept.values()) + 4  # the number of the step
    assert found["estimated"]["peak"] > found["estimated"]["state"]
    said = capsys.readouterr().out
    assert all((row in said) is (row in kept) for row in rows)


def test_the_report_shows_what_the_method_declares(trained, tmp_path):
    said, page = declaration.find(trained.method), tmp_path / "report.html"
    spoken = []
    report.run([str(trained.workdir)], str(page), spoken.append)
    text, lines = page.read_text(), logged.lines(trained.workdir)
    assert spoken[-1] == f"report    {page}" and not [s for s in spoken if "nothing about" in s]
    assert f"{said.title} pretraining of a" in text
    read = record.read(str(trained.workdir))  # six steps teach nobody everything:
    assert read.floor is None or read.floor < read.curves["loss"].values.min()
    for chart in said.charts:
        assert chart.title in text
        for name in chart.metrics:
            values = [line[name] for line in lines if "loss" in line]
            assert len(values) == STEPS and np.isfinite(values).all()
            assert not chart.percent or (min(values) >= 0 and max(values) <= 1)


def by_hand(trained, pixels):
    """Return the vectors that the module gives with the weights of the checkpoint."""
    of_run = saved.read(str(trained.workdir))
    module = toys.Known(modules.norm(of_run.config))
    encode = jax.jit(lambda variables, x: module.apply(variables, to_float(x), train=False)["h"])
    return np.asarray(encode(of_run.variables("encoder"), pixels))


def test_its_encoder_is_loaded_embeds_and_is_judged(trained, images, tmp_path):
    arrays = images[1]
    want = {split: by_hand(trained, arrays[f"{split}_images"]) for split in ("train", "test")}
    encoder = simclr_jax.load(trained.workdir)
    assert encoder.step == STEPS
    np.testing.assert_allclose(encoder(arrays["test_images"]), want["test"], atol=1e-5)

    file = tmp_path / "rows.npz"
    options = embed.Options(str(trained.workdir), str(file), cache="none")
    embed.run(options, lambda line: None)
    rows = embeddings.read(str(file))
    for place, split in enumerate(rows.about["parts"]):
        of_split = rows.part == place
        found = rows.features[of_split][np.argsort(rows.examples[of_split])]
        np.testing.assert_allclose(found, want[split], atol=1e-5)

    options = linear_probe.Options(solvers=("knn",), settings=Settings(knn=((1, None),)), name="x")
    said = []
    linear_probe.run([str(trained.workdir)], Wanted(), options, said.append)
    unit = {split: h / np.linalg.norm(h, axis=1, keepdims=True) for split, h in want.items()}
    nearest = np.argmax(unit["test"] @ unit["train"].T, axis=1)
    right = np.mean(arrays["train_labels"][nearest] == arrays["test_labels"])
    assert f"{100 * right:.1f}" in "\n".join(said), said


def test_fine_tuning_starts_from_it(trained, images, tmp_path):
    c = resolved("finetune", "")
    c.init.run, c.train.steps, c.optim.base_lr = str(trained.workdir), 1, 1e-9
    c.log.every_steps = 1
    assert run.run(c, str(tmp_path / "run")) == 0
    tuned, start = (saved.read(str(path)) for path in (tmp_path / "run", trained.workdir))
    assert tuned.config.stage == "finetune" and tuned.variables("classifier")["params"]
    before, after = (r.variables("encoder")["params"] for r in (start, tuned))
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), after, before)
