"""Packing by the door, by several processes, killed; and training on what came of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import doors
import numpy as np
import pytest
from data import packs
from doors import TINY, Blow

pytestmark = pytest.mark.e2e

OF_FOLDER = ("--config=configs/folder.py", "--config.data.max_bad_fraction=0.34")
# The door, with shards of four images, so that a few make many; Ctrl-C reaches it even where tests
# run in the background of a shell, which would have it ignored.
IN_FOURS = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "from simclr_jax.data.packing import plan; plan.MOST_IMAGES = 4\n"
    "from simclr_jax import entry, pack; entry.run(pack.main)"
)


def test_the_door_packs_verifies_and_refuses(tmp_path):
    root = packs.photographs(tmp_path / "images")
    asked = (*OF_FOLDER, f"--config.data.path={root}", f"--out={tmp_path}/store", "--workers=1")
    ended = doors.run(tmp_path, *asked, "--side=16", "--format=jpeg", "--quality=80", door="pack")
    assert ended.code == 0, ended
    assert "jpeg of quality 80, shorter side 16 pixels" in ended.out
    assert packs.opened(tmp_path / "store").classes == 2
    ended = doors.run(tmp_path, f"--verify={tmp_path}/store", door="pack")
    assert (ended.code, "every checksum is right" in ended.out) == (0, True), ended
    ended = doors.run(tmp_path, f"--verify={tmp_path}/store", "--workers=2", door="pack")
    said = f"--workers belongs to making a store, and --verify={tmp_path}/store looks at one"
    assert (ended.code, ended.err.count("\n")) == (1, 1) and said in ended.err, ended
    (shard,) = (tmp_path / "store").glob("test-*.bin")
    shard.write_bytes(bytes(shard.stat().st_size))
    ended = doors.run(tmp_path, f"--verify={tmp_path}/store", door="pack")
    assert ended.code == 1 and "such as test-00000.bin (image a/00.png)" in ended.err
    ended = doors.run(tmp_path, *asked, "--quality=80", door="pack")
    assert ended.code == 1 and ended.err.count("\n") == 1, ended
    assert "--quality=80 belongs to --format=jpeg" in ended.err


# Killed -------------------------------------------------------------------------------------------


def children(pid: int) -> list[int]:
    """Return the processes that a process has started."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found]


def is_there(pid: int) -> bool:
    try:
        return "zombie" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def until(condition, secs=60):
    end = time.monotonic() + secs
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="Linux tells who started whom")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_killed_with_its_workers_it_goes_on_to_the_bytes_of_one_process(tmp_path, number):
    from PIL import Image

    root, random = tmp_path / "images", np.random.RandomState(0)
    root.mkdir()
    for i in range(60):
        pixels = random.randint(0, 256, (500, 700, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{i:02}.png")
    partial = tmp_path / "store.partial"
    command = (sys.executable, "-c", IN_FOURS, *OF_FOLDER, f"--config.data.path={root}")
    many = (*command, f"--out={tmp_path}/store", "--workers=2")
    begun = subprocess.Popen(many, cwd=doors.ROOT, stderr=subprocess.PIPE, text=True)
    until(lambda: len([*partial.glob("train-*.npz")]) >= 2)
    workers = children(begun.pid)
    assert len(workers) >= 2
    os.kill(begun.pid, number)
    _, said = begun.communicate(timeout=60)
    assert begun.returncode == (130 if number == signal.SIGINT else -number)
    assert "Traceback" not in said
    until(lambda: not any(map(is_there, workers)), 20)
    assert not (tmp_path / "store").exists()
    there = len([*partial.glob("train-*.npz")])
    assert there < 15

    ended = doors.run_fresh(*many)
    assert ended.code == 0 and "are there from before" in ended.out, ended
    ended = doors.run_fresh(*command, f"--out={tmp_path}/alone", "--workers=1")
    assert ended.code == 0, ended
    assert packs.content(tmp_path / "store") == packs.content(tmp_path / "alone")
    assert len([*(tmp_path / "store").glob("train-*.bin")]) == 15


# Trained on ---------------------------------------------------------------------------------------

STEPS = 12


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    """Name a store of images of two classes, of which a sixth cannot be read."""
    place = tmp_path_factory.mktemp("packed")
    store = packs.pack(packs.photographs(place / "images", 60), place / "store")
    return (
        *TINY,
        "--config.data.source=packed",
        f"--config.data.path={store}",
        "--config.data.max_bad_fraction=0.34",
        "--config.augment.placement=split",
        "--config.augment.grid=opencv",
        "--config.optim.warmup_epochs=0.0",
        f"--config.train.steps={STEPS}",
        "--config.eval.every_epochs=1.0",
        "--config.eval.compare=False",
    )


@pytest.fixture(scope="module")
def straight(arguments, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("straight") / "run"
    ended = doors.run(workdir.parent, *arguments, f"--workdir={workdir}")
    assert ended.code == 0, ended
    assert "packed: uint8, shorter side 16 pixels" in ended.out
    return workdir


@pytest.mark.slow
def test_killed_and_resumed_on_a_store_is_the_same_run(arguments, straight, tmp_path):
    workdir = tmp_path / "run"
    saved = workdir / "checkpoints" / "6" / "manifest.json"
    arguments = (*arguments, f"--workdir={workdir}")
    ended = doors.run(tmp_path, *arguments, blow=Blow(signal.SIGKILL, 8, saved))
    assert ended.code == -signal.SIGKILL, ended
    ended = doors.run(tmp_path, *arguments, "--resume=must")
    assert ended.code == 0 and "resumed at step 6 of 12" in ended.out, ended
    assert doors.metrics(workdir) == doors.metrics(straight)


@pytest.mark.slow
def test_two_processes_read_one_store(arguments, straight, tmp_path):
    local = (sys.executable, "launch/local", "-n", "2", "--devices_each=1", "--", *doors.MAIN)
    workdir = tmp_path / "run"
    ended = doors.run_fresh(*local, *arguments, f"--workdir={workdir}")
    assert ended.code == 0, ended
    expected, found = doors.losses(straight), doors.losses(workdir)
    assert list(found) == list(range(1, STEPS + 1))
    # Other sums of other rounding, which grows; another order differs in the first digit at once.
    first, second = ([*losses.values()][:6] for losses in (found, expected))
    np.testing.assert_allclose(first, second, rtol=1e-3)
    assert len([*workdir.glob("unreadable_train.[01].jsonl")]) == 2
