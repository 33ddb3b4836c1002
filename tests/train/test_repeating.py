"""What compilers are told so that GPUs repeat a run to the bit, seen without a GPU.

XLA takes the options of all devices wherever it compiles, and refuses one that it does not know: so
an option that does not exist shows whether options reach the compiler.
"""

import dataclasses
import types

import jax
import numpy as np
import pytest
from train import tiny

from simclr_jax import parallel
from simclr_jax.evaluate import features
from simclr_jax.planning import program
from simclr_jax.stages import summary
from simclr_jax.train.step import make_step

NO_OPTION = {"xla_gpu_no_such_option": True}
REFUSED = "No such compile option: 'xla_gpu_no_such_option'"


def mesh_of(platform):
    device = types.SimpleNamespace(platform=platform)
    return types.SimpleNamespace(devices=np.array([device]))


@pytest.mark.parametrize("platform", ["gpu", "cuda", "rocm", "cpu", "tpu"])
def test_gpus_are_told_and_nothing_else_is(platform):
    mesh = mesh_of(platform)
    assert parallel.compiler_options(mesh, False) is None
    want = {"xla_gpu_deterministic_ops": True} if platform not in ("cpu", "tpu") else None
    assert parallel.compiler_options(mesh, True) == want


def test_a_plan_for_devices_that_are_not_there_needs_none():
    assert parallel.compiler_options(program.abstract_mesh(8), True) is None


@pytest.fixture
def compiled(monkeypatch):
    """Return a function that compiles the step of a recipe as for GPUs."""
    monkeypatch.setattr(parallel, "on_gpus", lambda mesh: True)

    def compiled(**fields):
        stage, mesh = tiny.make_stage(tiny.recipe(**fields), 2)
        batch = next(stage.batches(0, 1))[1]
        return make_step(stage, mesh).lower(jax.eval_shape(stage.init), batch).compile()

    return compiled


@pytest.mark.slow
def test_xla_knows_the_option(compiled):
    assert compiled(train__deterministic=True)


def test_the_step_is_compiled_with_it_if_the_recipe_says_deterministic(compiled, monkeypatch):
    monkeypatch.setattr(parallel, "DETERMINISTIC", NO_OPTION)
    assert compiled(train__deterministic=False)
    with pytest.raises(jax.errors.JaxRuntimeError, match=REFUSED):
        compiled(train__deterministic=True)


@pytest.mark.slow
def test_features_that_may_come_back_into_the_state_repeat_too(monkeypatch):
    """A method may renew what it keeps before an epoch from features of all images."""
    asked, run = [], features.extract

    def extract(*arguments, deterministic):
        asked.append(deterministic)
        return run(*arguments, deterministic=deterministic)

    monkeypatch.setattr(features, "extract", extract)
    for wanted in (False, True):
        stage, _ = tiny.make_stage(tiny.recipe(train__deterministic=wanted), 1)
        stage.evaluate(stage.init())
        assert set(asked) == {wanted}
        asked.clear()


def test_features_are_compiled_with_it(monkeypatch):
    run = jax.jit(
        features._on_devices,
        static_argnames=("encode", "mesh"),
        compiler_options=NO_OPTION,
    )
    monkeypatch.setattr(features, "_repeatable", run)
    monkeypatch.setattr(parallel, "on_gpus", lambda mesh: True)
    images, mesh = np.zeros((3, 2)), parallel.make_mesh(1)

    def encode(variables, images):
        return images + variables

    found = features.extract(encode, np.ones(2), images, mesh)
    np.testing.assert_array_equal(found, 1)
    with pytest.raises(jax.errors.JaxRuntimeError, match=REFUSED):
        features.extract(encode, np.ones(2), images, mesh, deterministic=True)


@pytest.mark.parametrize(
    "wanted, gpus, said",
    [
        (False, True, "computing in float32"),
        (True, True, "computing in float32, by kernels that repeat to the bit"),
        (
            True,
            False,
            "computing in float32, which repeats to the bit without train.deterministic",
        ),
    ],
)
def test_a_run_says_what_it_comes_to(wanted, gpus, said, monkeypatch, tmp_path):
    monkeypatch.setattr(parallel, "on_gpus", lambda mesh: gpus)
    config, lines = tiny.recipe(train__deterministic=wanted), []
    stage, mesh = tiny.make_stage(config, 1)
    workdir = types.SimpleNamespace(path=tmp_path, console=types.SimpleNamespace(say=lines.append))
    summary.announce(workdir, config, tiny.timetable(config), stage, mesh, [])
    assert [line.partition("cpu, ")[2] for line in lines if line.startswith("devices")] == [said]


@pytest.mark.parametrize(("warmup", "said"), [(2, []), (3, ["30% of the run"])])
def test_a_run_says_if_its_rate_rises_for_long(warmup, said, tmp_path):
    config, lines = tiny.recipe(), []
    stage, mesh = tiny.make_stage(config, 1)
    workdir = types.SimpleNamespace(path=tmp_path, console=types.SimpleNamespace(say=lines.append))
    length = dataclasses.replace(tiny.timetable(config), total_steps=10, warmup_steps=warmup)
    summary.announce(workdir, config, length, stage, mesh, [])
    notes = [line for line in lines if line.startswith("note")]
    assert len(notes) == len(said)
    for note, share in zip(notes, said, strict=True):
        assert share in note and f"warmup_epochs={length.epochs / 10:.3g} " in note
