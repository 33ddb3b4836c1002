"""Checkpoints: what comes back is what was saved, through kills, damage and other meshes."""

import json
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from simclr_jax import parallel
from simclr_jax.errors import UserError
from simclr_jax.train.checkpoints import Checkpoints


class Momentum(NamedTuple):
    trace: Any
    nothing: Any


def host_state(step: int) -> dict[str, Any]:
    """All dtypes a state may have, each value a function of the step."""
    rng = np.random.default_rng(step)
    odd_bits = np.array([-0.0, 0.0, np.inf, 1e-42] * 2, np.float32)  # 1e-42 is denormal
    odd_bits.view(np.uint32)[0] = 0x7FC0BEEF  # a NaN with a payload
    return {
        "step": np.int32(step),
        "params": {
            "kernel": rng.normal(size=(16, 40)).astype(np.float32),
            "half": rng.normal(size=(8, 3)).astype(ml_dtypes.bfloat16),
            "bits": odd_bits,
        },
        "opt": (Momentum(rng.normal(size=(8,)).astype(np.float32), None), {}),
        "flags": rng.random(8) > 0.5,
        "key": rng.integers(0, 2**32, 8, np.uint32),
        "small": rng.integers(-100, 100, 8).astype(np.int8),
    }


def mesh_sharding(*spec: str | None) -> NamedSharding:
    return NamedSharding(jax.make_mesh((8,), ("data",)), PartitionSpec(*spec))


def on_devices(tree: Any, *spec: str | None) -> Any:
    """Shard by `spec` what the devices divide, replicate the rest."""

    def put(a):
        divided = np.ndim(a) >= len(spec) and all(n % 8 == 0 for n in a.shape[: len(spec)])
        return jax.device_put(a, mesh_sharding(*(spec if divided else ())))

    return jax.tree.map(put, tree)


def target_of(tree: Any) -> Any:
    return jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=getattr(a, "sharding", None)),
        tree,
    )


def assert_same_bits(found: Any, expected: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True
    ):
        a, b = np.asarray(a), np.asarray(b)
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()), path


def leaves_on_disk(step_directory: Path) -> dict[str, Any]:
    return json.loads((step_directory / "manifest.json").read_text())["leaves"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """Steps 10 and 20 of `host_state`, never to be changed: copy it."""
    directory = tmp_path_factory.mktemp("saved") / "checkpoints"
    checkpoints = Checkpoints(directory)
    for step in (10, 20):
        checkpoints.save(step, on_devices(host_state(step)))
    checkpoints.close()
    return directory


@pytest.fixture
def directory(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "checkpoints"))


TARGET = target_of(host_state(0))


# Saving and restoring


def test_state_comes_back_bit_for_bit_in_its_own_classes(directory):
    step, state = Checkpoints(directory).restore(TARGET)
    assert step == 20
    assert_same_bits(state, host_state(20))


def test_numpy_and_float64_leaves_come_back_as_numpy(tmp_path):
    state = {"mean": np.array([1 / 3, np.pi]), "count": 7, "scale": 0.1}
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state)
    _, found = checkpoints.restore(state)
    assert found["mean"].dtype == np.float64 and isinstance(found["mean"], np.ndarray)
    assert (found["mean"] == state["mean"]).all() and found["count"] == 7 and found["scale"] == 0.1


@pytest.mark.parametrize("spec", [(), ("data",), (None, "data")], ids=str)
def test_any_sharding_has_the_same_checksums_and_restores_on_any_other(spec, saved, tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(20, on_devices(host_state(20), *spec))
    checkpoints.wait()
    assert leaves_on_disk(tmp_path / "20") == leaves_on_disk(saved / "20")
    for other in ((), ("data",), (None, "data")):
        target = target_of(on_devices(host_state(0), *other))
        _, state = checkpoints.restore(target)
        assert_same_bits(state, host_state(20))
        assert jax.tree.map(lambda a: a.sharding, state) == jax.tree.map(
            lambda a: a.sharding, target
        )


def test_caller_may_donate_delete_and_overwrite_as_soon_as_save_returns(tmp_path):
    step_forward = jax.jit(lambda a: a + 1, donate_argnums=0)
    big = {"donated": (1024, 1024), "deleted": (512, 512), "sharded": (1024, 64)}
    state: dict[str, Any] = {name: jnp.ones(shape) for name, shape in big.items()}
    state["sharded"] = jax.device_put(state["sharded"], mesh_sharding("data"))
    state["numpy"] = np.ones((512, 512), np.float32)
    target = target_of(state) | {"numpy": state["numpy"]}
    checkpoints = Checkpoints(tmp_path)
    for step in range(1, 4):
        checkpoints.save(step, state)
        fresh = jnp.full(big["deleted"], step + 1.0)
        state["deleted"].delete()
        state["numpy"] += 1
        for name in ("donated", "sharded"):
            state[name] = step_forward(state[name])
        state["deleted"] = fresh
        _, found = checkpoints.restore(target)
        assert {name: (a.min(), a.max()) for name, a in found.items()} == dict.fromkeys(
            found, (step, step)
        )


def test_other_orbax_tools_read_the_files(saved):
    tree = ocp.StandardCheckpointer().restore(saved / "20")
    expected = host_state(20)
    np.testing.assert_array_equal(tree["params"]["kernel"], expected["params"]["kernel"])
    np.testing.assert_array_equal(tree["opt"]["0"]["trace"], expected["opt"][0].trace)


def test_empty_directory_has_no_checkpoint(tmp_path):
    checkpoints = Checkpoints(tmp_path / "absent")
    assert checkpoints.restore(TARGET) is None and checkpoints.steps() == []


def test_pruning_keeps_the_newest_and_the_periodic(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2, keep_period=20)
    for step in range(5, 50, 5):
        checkpoints.save(step, {"a": jnp.full(3, step)})
    checkpoints.wait()
    assert checkpoints.steps() == [20, 40, 45]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["20", "40", "45"]


def test_saving_a_step_twice_is_refused(directory):
    with pytest.raises(UserError, match="20 exists"):
        Checkpoints(directory).save(20, host_state(20))


# Damage


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x55
    path.write_bytes(content)


def biggest_file(directory: Path) -> Path:
    """Return the file with the arrays; the manifest is longer than these small ones."""
    return max(directory.glob("**/d/*"), key=lambda path: path.stat().st_size)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def alter_shape(path: Path) -> None:
    text = path.read_text()
    assert "40\n" in text
    path.write_text(text.replace("40\n", "48\n", 1))


DAMAGE = {
    "empty directory": (lambda d: (d / "30").mkdir(), 30, "no manifest.json"),
    "file for a directory": (lambda d: (d / "30").write_text(""), 30, "no manifest.json"),
    "copy of another step": (lambda d: shutil.copytree(d / "10", d / "30"), 30, "step 10"),
    "no manifest": (lambda d: (d / "20/manifest.json").unlink(), 20, "did not finish"),
    "truncated manifest": (lambda d: truncate(d / "20/manifest.json"), 20, "not JSON"),
    "altered manifest": (lambda d: alter_shape(d / "20/manifest.json"), 20, "altered"),
    "truncated data": (lambda d: truncate(biggest_file(d / "20")), 20, "bytes"),
    "missing data": (lambda d: biggest_file(d / "20").unlink(), 20, "missing"),
    "flipped byte": (lambda d: flip(biggest_file(d / "20")), 20, "altered"),
    "no Orbax metadata": (lambda d: (d / "20/_CHECKPOINT_METADATA").unlink(), 20, "missing"),
    "altered metadata": (lambda d: flip(d / "20/_METADATA"), 20, "_METADATA was altered"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_step_is_set_aside_and_the_one_before_restored(kind, directory):
    damage, bad, reason = DAMAGE[kind]
    damage(directory)
    said: list[str] = []
    checkpoints = Checkpoints(directory, say=said.append)
    step, state = checkpoints.restore(TARGET)
    assert step == bad - 10
    assert_same_bits(state, host_state(step))
    assert (directory / f"{bad}.damaged").exists() and not (directory / str(bad)).exists()
    assert len(said) == 1 and str(directory / str(bad)) in said[0]
    assert re.search(reason, said[0]), said[0]


def test_flipped_byte_among_many_values_is_found_by_their_checksum(tmp_path):
    """Large files have no digest of their own, and Orbax restores them changed."""
    values = {step: np.random.default_rng(step).normal(size=200_000) for step in (1, 2)}
    checkpoints = Checkpoints(tmp_path, say=(said := []).append)
    for step in values:
        checkpoints.save(step, {"mean": values[step]})
    checkpoints.wait()
    flip(biggest_file(tmp_path / "2"))
    step, state = checkpoints.restore({"mean": values[1]})
    assert step == 1 and (state["mean"] == values[1]).all()
    assert "the values of mean are not those" in said[0]


def test_a_flipped_byte_in_any_file_never_gives_wrong_values(saved, tmp_path):
    names = [p.relative_to(saved / "20") for p in (saved / "20").rglob("*") if p.is_file()]
    steps = []
    for i, name in enumerate(names):
        directory = Path(shutil.copytree(saved, tmp_path / str(i)))
        flip(directory / "20" / name)
        step, state = Checkpoints(directory, say=lambda _: None).restore(TARGET)
        assert_same_bits(state, host_state(step))
        steps.append(step)
    assert steps.count(10) >= 3  # manifest, metadata, values: the flips did do something


def test_no_whole_step_gives_none(directory):
    for step in ("10", "20"):
        flip(biggest_file(directory / step))
    said: list[str] = []
    assert Checkpoints(directory, say=said.append).restore(TARGET) is None
    assert len(said) == 2


def test_damage_is_set_aside_twice_without_loss(directory):
    for _ in range(2):
        (directory / "30").mkdir()
        Checkpoints(directory, say=lambda _: None).restore(TARGET)
    assert (directory / "30.damaged").exists() and (directory / "30.damaged-2").exists()


def test_whole_checkpoints_that_were_lost_are_told_from_unfinished_ones(directory):
    """A run that never finished a save starts anew; one that lost what it had must not."""
    (directory / "20/manifest.json").unlink()
    flip(biggest_file(directory / "10"))
    for _ in range(2):
        checkpoints = Checkpoints(directory, say=lambda _: None)
        assert checkpoints.restore(TARGET) is None
        assert checkpoints.damaged() == ["10.damaged"]


def test_step_left_without_manifest_can_be_saved_anew(directory):
    (directory / "20/manifest.json").unlink()
    checkpoints = Checkpoints(directory, say=lambda _: None)
    checkpoints.save(20, on_devices(host_state(20)))
    checkpoints.wait()
    assert checkpoints.steps() == [10, 20]


def test_reader_of_a_running_training_changes_nothing(directory):
    (directory / "30").mkdir()
    (directory / "40.orbax-checkpoint-tmp").mkdir()
    before = sorted(directory.iterdir())
    said: list[str] = []
    reader = Checkpoints(directory, read_only=True, say=said.append)
    step, state = reader.restore(TARGET)
    assert step == 20 and len(said) == 1
    assert_same_bits(state, host_state(20))
    assert sorted(directory.iterdir()) == before
    with pytest.raises(ValueError, match="read-only"):
        reader.save(50, state)


def other_models() -> dict[str, tuple[Any, str]]:
    def changed(change):
        target = target_of(host_state(0))
        change(target)
        return target

    def set_kernel(shape, dtype):
        kernel = jax.ShapeDtypeStruct(shape, dtype)
        return changed(lambda t: t["params"].update(kernel=kernel))

    return {
        "dtype": (set_kernel((16, 40), jnp.bfloat16), r"params/kernel is float32\[16,40\]"),
        "shape": (set_kernel((40, 16), jnp.float32), r"params/kernel is .* float32\[40,16\] in"),
        "missing": (changed(lambda t: t["params"].pop("half")), "params/half is only in the check"),
        "extra": (changed(lambda t: t.update(ema=TARGET["key"])), "ema is only in the model"),
    }


@pytest.mark.parametrize("kind", other_models())
def test_another_model_is_an_error_and_sets_nothing_aside(kind, directory):
    target, message = other_models()[kind]
    checkpoints = Checkpoints(directory, say=pytest.fail)
    with pytest.raises(UserError, match=message):
        checkpoints.restore(target)
    assert checkpoints.steps() == [10, 20]


def test_failure_that_is_not_damage_sets_nothing_aside(directory, monkeypatch):
    """As a device out of memory: the files are whole, so they stay."""
    checkpoints = Checkpoints(directory, say=pytest.fail)

    def place(values, sharding):
        raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setattr(parallel, "place", place)
    with pytest.raises(RuntimeError, match="out of memory"):
        checkpoints.restore(TARGET)
    assert checkpoints.steps() == [10, 20]


def test_what_a_thread_meets_after_the_end_is_no_damage(tmp_path, monkeypatch):
    """A run that was interrupted while it was read; Python ends around the thread that reads."""
    state = host_state(1)
    opened = Checkpoints(tmp_path)
    opened.save(1, state)
    opened.close()
    opened = Checkpoints(tmp_path)

    def ends(*_):
        opened.close()
        raise RuntimeError("cannot schedule new futures after shutdown")

    monkeypatch.setattr(opened, "_load", ends)
    with pytest.raises(RuntimeError, match="cannot schedule"):
        opened.restore(target_of(state))
    assert (tmp_path / "1").is_dir() and not [*tmp_path.glob("*.damaged*")]
