"""Averaged weights are judged, embedded, searched by, loaded and started from, and not mistaken.

The average of a run here are the weights of another run: what is made of it must be what is made of
that one.
"""

from __future__ import annotations

import re
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from stages.written import write_images, write_run
from train import tiny

import simclr_jax
from simclr_jax import documents
from simclr_jax.embedding import embed, embeddings, search
from simclr_jax.errors import UserError
from simclr_jax.interop import export
from simclr_jax.judging import linear_probe, results, transfer
from simclr_jax.judging.datasets import Wanted
from simclr_jax.judging.linear_probe import Options
from simclr_jax.judging.solvers import Settings
from simclr_jax.stages import run as runs
from simclr_jax.stages.warm_start import load_parts
from simclr_jax.train import manifest, saved
from simclr_jax.train.checkpoints import Checkpoints

OF_NETWORK = re.compile("(params|batch_stats)/(encoder|head)/")
KNN = Options(solvers=("knn",), settings=Settings(knn=((3, None),)))


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "images.npz"
    return path, write_images(path, side=8)


def written(place, archive, seed):
    fields = {"data__source": "memory", "data__path": str(archive[0]), "seed": seed}
    return write_run(place, **fields)


@pytest.fixture(scope="module")
def other(tmp_path_factory, archive):
    return written(tmp_path_factory.mktemp("other"), archive, 1)


def with_averages(run, other, place, *names):
    """Copy a run, with the weights of another one as its averages of some names."""
    read, arrays = saved.read(str(run)), saved.read(str(other)).leaves
    leaves = dict(read.leaves)
    for name in names:
        leaves |= {f"extra/{name}/{n}": x for n, x in arrays.items() if OF_NETWORK.match(n)}
    checkpoints = Checkpoints(place / "checkpoints")
    checkpoints.save(read.step, leaves)
    checkpoints.close()
    documents.write(place / "config.json", dict(read.record))
    return place


@pytest.fixture(scope="module")
def plain(tmp_path_factory, archive):
    return written(tmp_path_factory.mktemp("plain"), archive, 0)


@pytest.fixture(scope="module")
def run(tmp_path_factory, plain, other):
    return with_averages(plain, other, tmp_path_factory.mktemp("run"), "target")


def silent(line):
    pass


def test_loaded_it_is_the_encoder_of_the_average(run, other, archive):
    images = archive[1]["test_images"]
    average, trained = simclr_jax.load(run, weights="average"), simclr_jax.load(run)
    for tap in ("h", "z"):
        want = simclr_jax.load(other)(images, tap)
        np.testing.assert_array_equal(average(images, tap), want)
        assert np.abs(trained(images, tap) - want).max() > 0.01
    assert (average.run, trained.run) == (f"{run}@7 average", f"{run}@7")
    assert average.classifier is None and trained.classifier is not None  # read off other features


def test_judged_it_has_results_of_its_own_name(run, other):
    linear_probe.run([str(run)], Wanted(), KNN, silent)
    average = linear_probe.dataclasses.replace(KNN, weights="average")
    for checkpoint in (str(run), f"{run}@7"):
        linear_probe.run([checkpoint], Wanted(), average, silent)
    linear_probe.run([str(other)], Wanted(), KNN, silent)
    found = {one["name"]: one for one in (results.read(path) for path in results.paths(run))}
    assert {*found} == {"knn3-h", "knn3-h-average", "knn3-h-average-step7"}
    (want,) = (results.read(path) for path in results.paths(other))
    assert found["knn3-h-average"]["checkpoint"]["run"] == f"{run}@7 average"
    assert found["knn3-h-average"]["checkpoint"]["weights"] == want["checkpoint"]["weights"]
    arrays = {
        name: dict(np.load(Path(place) / "results" / f"{name}.npz"))
        for place, name in ((run, "knn3-h-average"), (run, "knn3-h"))
    }
    wanted = dict(np.load(Path(other) / "results" / "knn3-h.npz"))
    np.testing.assert_array_equal(arrays["knn3-h-average"]["predictions"], wanted["predictions"])
    # Features are kept apart: three images' worth of weights, two splits each.
    kept = {path.parent.name for path in (run / "features").glob("*/about.json")}
    assert len(kept) == 4


def test_transfer_names_it_too(run, tmp_path):
    arrays = {
        f"{split}_{what}": x
        for split in ("train", "test")
        for what, x in zip(
            ("images", "labels"),
            (np.random.RandomState(0).randint(0, 256, (24, 8, 8, 3), np.uint8), np.arange(24) % 3),
            strict=True,
        )
    }
    np.savez(tmp_path / "set.npz", **arrays)
    how = {"sets": (), "others": [str(tmp_path / "set.npz")], "say": silent, "cache": "none"}
    for weights in ("trained", "average"):
        transfer.run(str(run), weights=weights, **how)
    names = sorted(path.stem for path in run.glob("results/transfer-*.json"))
    assert [name.endswith("-average") for name in names] == [False, True]
    one, two = (results.read(run / "results" / f"{name}.json") for name in names)
    assert one["checkpoint"]["weights"] != two["checkpoint"]["weights"]


def test_embedded_it_is_searched_by_the_same_weights(run, other, archive, tmp_path):
    found = {}
    for name, workdir, weights in (("a", run, "average"), ("b", other, "trained")):
        out = tmp_path / f"{name}.npz"
        embed.run(embed.Options(str(workdir), str(out), weights=weights, cache="none"), silent)
        found[name] = embeddings.read(str(out))
    np.testing.assert_array_equal(found["a"].features, found["b"].features)
    Image.fromarray(archive[1]["test_images"][5]).save(tmp_path / "query.png")
    said = []
    options = search.Options(str(tmp_path / "a.npz"), query=[str(tmp_path / "query.png")], k=1)
    search.run(options, lambda line: said.extend(line.split("\n")))
    # By the trained weights it is another vector, which search refuses as another checkpoint's.
    unit = found["a"].features / np.linalg.norm(found["a"].features, axis=1, keepdims=True)
    names = found["a"].names.tolist()
    cosine = dict(zip(names, unit @ unit[names.index("test: image 5")], strict=True))
    nearest = said[1].strip().removeprefix("1.000   ").rpartition(": class ")[0]
    assert cosine[nearest] > 1 - 1e-5 > min(cosine.values())


@pytest.mark.parametrize(
    "parts, averaged, trained",
    [
        ("average", ("encoder", "head"), ()),
        ("average:encoder", ("encoder",), ()),
        ("average:encoder, head,probe", ("encoder",), ("head", "probe")),
    ],
)
def test_a_run_starts_from_the_parts_it_names(run, plain, other, parts, averaged, trained):
    state = tiny.make_stage(tiny.recipe(seed=3), 1)[0].init()
    init = ConfigDict({"run": str(run), "parts": parts})
    found, before = (manifest.named_leaves(s) for s in (load_parts(init, state), state))
    sources = dict.fromkeys(averaged, saved.read(str(other)).leaves)
    sources |= dict.fromkeys(trained, saved.read(str(plain)).leaves)
    taken = set()
    for name, leaf in jax.device_get(found).items():
        kind, part = (*name.split("/"), "")[:2]
        of = sources.get(part) if kind in ("params", "batch_stats") else None
        taken |= {part} if of else set()
        np.testing.assert_array_equal(leaf, of[name] if of else before[name], err_msg=name)
    assert taken == {*averaged, *trained}


def test_a_run_that_keeps_none_says_what_it_has(plain, run, other, tmp_path):
    has = r"average, but .*@7 keeps no moving average of its weights, only encoder, head, probe"
    average = linear_probe.dataclasses.replace(KNN, weights="average")
    for door in (
        lambda: linear_probe.run([str(plain)], Wanted(), average, silent),
        lambda: transfer.run(str(plain), weights="average", say=silent),
        lambda: embed.run(embed.Options(str(plain), str(tmp_path / "x.npz"), weights="average")),
        lambda: export.run(
            export.Options(str(plain), "numpy", str(tmp_path / "y.npz"), weights="average")
        ),
    ):
        with pytest.raises(UserError, match=f"--weights={has}"):
            door()
    with pytest.raises(UserError, match=f"weights={has}"):
        simclr_jax.load(plain, weights="average")
    config = tiny.recipe(data__source="memory", data__path="", init__run=str(plain))
    config.data.path, config.init.parts = str(saved.read(str(plain)).config.data.path), "average"
    with pytest.raises(UserError, match=f"init.parts={has}"):
        runs.run(config, str(tmp_path / "new"))
    assert not list(tmp_path.iterdir()), "before anything is written"
    with pytest.raises(UserError, match=r'weights is "avergae".*did you mean "average"'):
        simclr_jax.load(run, weights="avergae")
    several = with_averages(plain, other, tmp_path / "several", "fast", "slow")
    with pytest.raises(UserError, match=r"keeps several \(fast, slow\)"):
        simclr_jax.load(several, weights="average")
    init = ConfigDict({"run": str(run), "parts": "average,encoder"})
    with pytest.raises(UserError, match="takes encoder twice, trained and averaged"):
        load_parts(init, tiny.make_stage(tiny.recipe(), 1)[0].init())
