"""The step compiled ahead: once, for the right batches, with a word from the last time."""

from __future__ import annotations

import json
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from train import tiny

from simclr_jax import files, parallel
from simclr_jax.train import compiling
from simclr_jax.train.compiling import Ahead, FirstAhead, Times
from simclr_jax.train.progress import Silence
from simclr_jax.train.step import make_step


class Lines(Silence):
    """A console that keeps what it is told."""

    def __init__(self):
        self.said = []

    def say(self, text):
        self.said.append(text)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "cache_directory", lambda: tmp_path / "cache")
    return tmp_path / "cache"


def ahead():
    """Return a small step, ahead of its use, and what it has said and been traced for."""
    mesh, console, traced = parallel.make_mesh(2), Lines(), []

    def step(state, batches, frozen):
        traced.append(batches["x"].shape)
        return state + batches["x"].sum(), {"loss": batches["x"].mean() * frozen["by"]}

    state = parallel.replicate(mesh, jnp.float32(1))
    frozen = parallel.replicate(mesh, {"by": jnp.float32(2)})
    described = parallel.describe(mesh, state)
    return Ahead(jax.jit(step, donate_argnums=0), described, frozen, console), mesh, console, traced


def batch(mesh, steps):
    return parallel.shard(mesh, {"x": np.ones((steps, 4), np.float32)}, axis=1)


def test_a_step_begun_is_compiled_once_and_taken():
    step, mesh, console, traced = ahead()
    frozen = parallel.replicate(mesh, {"by": jnp.float32(2)})
    step.begin(batch(mesh, 1))
    step.wait((range(1), batch(mesh, 1)))
    state = parallel.replicate(mesh, jnp.float32(1))
    for _ in range(2):
        state, metrics = step(state, batch(mesh, 1), frozen)
    assert float(state) == 9 and float(metrics["loss"]) == 2
    assert traced == [(1, 4)]
    assert [line.split()[0] for line in console.said] == ["compiling", "compiled"]


def test_batches_of_another_shape_are_compiled_when_they_come():
    step, mesh, _, traced = ahead()
    frozen = parallel.replicate(mesh, {"by": jnp.float32(2)})
    step.begin(batch(mesh, 3))
    state, _ = step(parallel.replicate(mesh, jnp.float32(1)), batch(mesh, 2), frozen)
    assert float(state) == 9 and sorted(traced) == [(2, 4), (3, 4)]


def test_what_is_no_program_is_called_as_it_is():
    step = Ahead(lambda *given: given, None, None, Lines())
    step.begin({})
    step.wait((range(1), {}))
    assert step(1, {}, 2) == (1, {}, 2)


def test_the_last_time_is_remembered(cache):
    times = Times()
    assert "for the first time" in times.expected("a", "1 x cpu", 1000)
    times.keep("a", "1 x cpu", 1000, 20.0)
    assert "20 s the first time, now less" in Times().expected("a", "1 x cpu", 1000)
    assert "by its length about 10 s" in Times().expected("b", "1 x cpu", 500)
    assert "may take minutes" in Times().expected("b", "1 x gpu", 500)
    Times().keep("a", "1 x cpu", 1000, 2.0)  # found in the cache
    assert "about 2 s, as the last time" in Times().expected("a", "1 x cpu", 1000)
    assert "by its length about 10 s" in Times().expected("b", "1 x cpu", 500)  # which is not


def test_the_newest_are_kept(cache, monkeypatch):
    monkeypatch.setattr(compiling, "MOST", 2)
    for name in "abac":
        Times().keep(name, "1 x cpu", 1000, 20.0)
    kept = json.loads((cache / compiling.NAME).read_text())
    assert {"a", "c"} <= kept.keys() and "b" not in kept


@pytest.mark.parametrize("content", ["{", '{"a": 3}', ""])
def test_a_damaged_memory_is_an_empty_one(content, cache):
    cache.mkdir()
    (cache / compiling.NAME).write_text(content)
    times = Times()
    assert "for the first time" in times.expected("a", "1 x cpu", 1000)
    times.keep("a", "1 x cpu", 1000, 20.0)
    assert "20 s the first time" in Times().expected("a", "1 x cpu", 1000)


def test_where_nothing_can_be_kept_nothing_is(cache):
    cache.write_text("a file where the directory should be")
    step, mesh, console, _ = ahead()
    step.wait((range(1), batch(mesh, 1)))
    assert console.said[-1].startswith("compiled")


def test_the_first_batch_is_made_ahead_and_the_rest_follow():
    begun = threading.Event()

    def numbers():
        begun.set()
        yield from range(3)

    source = FirstAhead(numbers())
    begun.wait(10)
    assert source.first(Silence()) == 0 and list(source) == [0, 1, 2]
    assert list(FirstAhead(iter([]))) == []


def test_a_first_batch_that_fails_is_said_where_it_is_wanted():
    def failing():
        raise ValueError("no such image")
        yield

    source = FirstAhead(failing())
    with pytest.raises(ValueError, match="no such image"):
        source.first(Silence())


@pytest.mark.parametrize("made", [True, False], ids=["made", "being made"])
def test_batches_are_closed_also_while_the_first_is_being_made(made):
    go, closed = threading.Event(), threading.Event()

    def numbers():
        try:
            go.wait(10)
            yield 0
        finally:
            closed.set()

    source = FirstAhead(numbers())
    if made:
        go.set()
        source.first(Silence())
    source.close()
    go.set()
    assert closed.wait(10)


def test_the_real_step_compiled_ahead_is_the_step():
    stage, mesh = tiny.make_stage(tiny.recipe(), 2)
    described = parallel.describe(mesh, jax.eval_shape(stage.init))
    step = Ahead(make_step(stage, mesh), described, stage.frozen, Lines())
    step.begin(stage.like(1))
    [*chunks] = stage.batches(0, 2)
    ours, plain = stage.init(), stage.init()
    for _, batches in chunks:
        ours, _ = step(ours, batches, stage.frozen)
        plain, _ = make_step(stage, mesh)(plain, batches, stage.frozen)
    assert len(step._work) == 1, "the batches are not as they were described"
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


PLACEMENTS = {
    "device": {},
    "resident": {"data__resident": True},
    "canvas": {"augment__placement": "canvas", "augment__canvas": 16},
    "split": {"augment__placement": "split", "augment__grid": "opencv"},
}


@pytest.mark.parametrize("fields", PLACEMENTS.values(), ids=PLACEMENTS)
@pytest.mark.parametrize("steps", [1, 2])
def test_batches_are_as_they_are_described(fields, steps):
    stage, _ = tiny.make_stage(tiny.recipe(train__steps_per_call=steps, **fields), 2)
    _, batches = next(stage.batches(0, 2))
    described = stage.like(steps)
    assert batches.keys() == described.keys()
    for name, like in described.items():
        found = batches[name]
        assert (found.shape, found.dtype) == (like.shape, like.dtype), name
        assert found.sharding.is_equivalent_to(like.sharding, found.ndim), name
