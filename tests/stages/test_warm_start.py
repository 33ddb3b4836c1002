"""A run that starts from another's weights takes those, all of them, and nothing else."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from train import tiny

from simclr_jax import documents
from simclr_jax.errors import UserError
from simclr_jax.stages.warm_start import load_parts
from simclr_jax.train import manifest
from simclr_jax.train.checkpoints import Checkpoints


@pytest.fixture(scope="module")
def state():
    return tiny.make_stage(tiny.recipe(), 8)[0].init()


@pytest.fixture(scope="module")
def run(tmp_path_factory, state):
    """The workdir of a run with checkpoints 3 and 6, every leaf of which is 3 or 6."""
    workdir = tmp_path_factory.mktemp("run")
    checkpoints = Checkpoints(workdir / "checkpoints")
    for step in (3, 6):
        checkpoints.save(step, jax.tree.map(lambda leaf, s=step: np.full_like(leaf, s), state))
    checkpoints.close()
    documents.write(workdir / "config.json", tiny.recipe().to_dict())
    return workdir


def init(run, parts="encoder,head"):
    return ConfigDict({"run": str(run), "parts": parts})


@pytest.mark.parametrize("at, value", [("", 6), ("@3", 3), ("@6", 6)])
@pytest.mark.parametrize("parts", ["encoder", "encoder,head", "encoder, head, probe"])
def test_named_parts_are_taken_and_the_rest_is_left(state, run, at, value, parts):
    started = load_parts(init(f"{run}{at}", parts), state)
    names = tuple(
        f"{kind}/{part.strip()}/" for kind in ("params", "batch_stats") for part in parts.split(",")
    )
    before, after = manifest.named_leaves(state), manifest.named_leaves(started)
    assert before.keys() == after.keys()
    for name, leaf in after.items():
        want = np.full_like(leaf, value) if name.startswith(names) else before[name]
        np.testing.assert_array_equal(leaf, want, err_msg=name)
        assert leaf.sharding == before[name].sharding and leaf.dtype == before[name].dtype


def test_a_probe_on_another_layer_is_refused(state, run):
    """Layers of a head have the same size, so that only the recipes can tell."""
    parts = init(run, "encoder,probe")
    load_parts(parts, state, tap=0)
    with pytest.raises(
        UserError, match=r"reads layer 0 .* this one layer 1: set .*probe_tap .* to 0"
    ):
        load_parts(parts, state, tap=1)
    load_parts(init(run, "encoder"), state, tap=1)


def test_no_run_changes_nothing(state):
    assert load_parts(init(""), state) is state


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"model__width": 1 / 8}, r"encoder/\S+ is float32\(.*\) there and .* here; .* more"),
        ({"head__layers": 3}, r"head/\S+ is missing there"),
        ({"head__layers": 1}, r"head/\S+ is extra there"),
    ],
)
def test_another_model_is_refused_leaf_by_leaf(run, fields, message):
    other = tiny.make_stage(tiny.recipe(**fields), 8)[0].init()
    with pytest.raises(UserError, match=message):
        load_parts(init(run), other)
    if "head__layers" in fields:  # whose encoder fits
        load_parts(init(run, "encoder"), other)


@pytest.mark.parametrize(
    "at, parts, message",
    [
        ("@4", "encoder", "no whole checkpoint 4 .* 3, 6"),
        ("@last", "encoder", "@last holds no checkpoints"),
        ("/nowhere", "encoder", "holds no checkpoints"),
        ("", "encode", 'did you mean "encoder"'),
    ],
)
def test_what_is_not_there_is_named(state, run, at, parts, message):
    with pytest.raises(UserError, match=message):
        load_parts(init(f"{run}{at}", parts), state)


def test_a_damaged_checkpoint_is_passed_over_and_stays_where_it_is(state, run, tmp_path, capfd):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    largest = max((copy / "checkpoints" / "6").rglob("*"), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1])
    started = load_parts(init(copy), state)
    assert float(jax.tree.leaves(started.params["encoder"])[0].ravel()[0]) == 3
    with pytest.raises(UserError, match="no whole checkpoint 6"):
        load_parts(init(f"{copy}@6"), state)
    assert (copy / "checkpoints" / "6").is_dir()
