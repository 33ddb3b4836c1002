"""Lines of the log: means over the steps since the line before, also across interruptions."""

import json
import re
from types import SimpleNamespace

import bucket
import jax.numpy as jnp
import logged
import numpy as np
import pytest
from etils import epath

from simclr_jax import files, processes
from simclr_jax.errors import UserError
from simclr_jax.train.log import Log
from simclr_jax.train.loggers import Loggers
from simclr_jax.train.timetable import Timetable

TOTAL, EVERY = 22, 6

_random = np.random.RandomState(0)
STEPS = {  # what each step of a run measures
    "loss": np.float32(5 + _random.rand(TOTAL)),
    "gradient_norm": np.float32(10 ** _random.normal(size=TOTAL)),
    "lr": np.float32(np.linspace(0, 1, TOTAL) ** 2),
}


@pytest.fixture(params=["disk", "bucket"])
def workdir(request, tmp_path):
    if request.param == "disk":
        yield epath.Path(tmp_path)
        return
    with bucket.at(tmp_path):
        yield epath.Path("gs://fake/run")


@pytest.fixture(autouse=True)
def kept():
    """What checkpoints know of the log, by workdir and step."""
    KEPT.clear()
    return KEPT


KEPT = {}


def train(path, first=0, until=TOTAL, saves=(), chunk=1, metrics=STEPS):
    """Log as the loop does, end after `until` steps, and return what the console has shown."""
    shown, seals = [], KEPT.setdefault(str(path), {})
    run = SimpleNamespace(
        path=path,
        checkpoints=SimpleNamespace(
            wait=lambda: None, steps=lambda: [0], about=lambda step: seals.get(step, {})
        ),
        console=SimpleNamespace(status=shown.append, say=shown.append),
        loggers=Loggers(path),
    )
    timetable = Timetable(100, 10, TOTAL, 0, 1.0, chunk, EVERY, 0, 1)
    with Log(timetable, {"loss": "loss {:.6f}"}, run, first) as log:
        for start in range(first, until, chunk):
            done = min(start + chunk, TOTAL)
            log.add(range(start, done), {k: jnp.asarray(v[start:done]) for k, v in metrics.items()})
            if done in (*saves, TOTAL):
                seal = log.seal(SimpleNamespace(step=jnp.int32(done), params={"w": jnp.ones(2)}))
                seals[done] = {"log": json.loads(json.dumps(seal))}
    return shown


def lines(path):
    return logged.lines(path)


def straight(path, chunk=1):
    """Return the lines of a run that nothing interrupts."""
    whole = files.make_workdir(path / "straight")
    train(whole, chunk=chunk)
    return lines(whole)


@pytest.mark.parametrize("chunk", [1, 2, 3, 6])
def test_a_line_has_the_means_since_the_line_before_and_the_rate_of_its_step(tmp_path, chunk, kept):
    shown = train(epath.Path(tmp_path), chunk=chunk, saves=range(0, TOTAL, 6))
    found = lines(tmp_path)
    if chunk < EVERY:  # the first steps are shown at once, and are in no line of their own
        first = np.mean(STEPS["loss"][:chunk], dtype=np.float64)
        assert shown.pop(0) == f"step {chunk}/22  {chunk / 22:4.0%}  loss {first:.6f}"
    windows = [(0, 6), (6, 12), (12, 18), (18, 22)]  # the last is short
    assert [line["step"] for line in found] == [end for _, end in windows]
    for line, (start, end) in zip(found, windows, strict=True):
        for name in ("loss", "gradient_norm"):
            mean = np.mean(STEPS[name][start:end], dtype=np.float64)
            np.testing.assert_allclose(line[name], mean, rtol=1e-14)
        assert line["lr"] == STEPS["lr"][end - 1]
        assert line["epoch"] == end * 10 / 100
        recent = np.mean(STEPS["loss"][max(0, end - EVERY) : end], dtype=np.float64)
        assert f"  loss {recent:.6f}" in shown.pop(0)
    assert not shown
    # Each of the saves was of a step of a line: there was nothing to keep.
    assert {about["log"]["window"] for about in kept[str(tmp_path)].values()} == {0}


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_what_is_shown_between_lines_has_the_means_over_as_many_steps(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr("simclr_jax.train.log.STATUS_SECS", 0)
    shown = train(epath.Path(tmp_path), chunk=chunk)
    ends = [*range(chunk, TOTAL, chunk), TOTAL]
    assert [int(re.match(r"step (\d+)/", line)[1]) for line in shown] == ends
    for end, line in zip(ends, shown, strict=True):
        mean = np.mean(STEPS["loss"][max(0, end - EVERY) : end], dtype=np.float64)
        assert re.search(r"  loss ([\d.]+)", line)[1] == f"{mean:.6f}"


def test_an_evaluation_that_measures_nothing_has_no_line(tmp_path):
    said = []
    run = SimpleNamespace(
        path=epath.Path(tmp_path),
        checkpoints=SimpleNamespace(about=lambda step: {}),
        console=SimpleNamespace(status=said.append, say=said.append),
        loggers=Loggers(epath.Path(tmp_path)),
    )
    with Log(Timetable(100, 10, TOTAL, 0, 1.0, 1, EVERY, 0, 1), {"a": "a {}"}, run, 0) as log:
        log.evaluation(0, {})
        log.evaluation(3, {"a": 0.5})
    assert said == ["step 3  held out: a 0.5"] and [x["step"] for x in lines(tmp_path)] == [3]


@pytest.mark.parametrize("chunk, at", [(1, 1), (1, 5), (1, 7), (1, 20), (2, 4), (2, 20), (3, 9)])
def test_interrupted_between_two_lines_the_file_is_the_same_to_the_bit(workdir, chunk, at):
    train(workdir, until=at, saves=[at], chunk=chunk)
    train(workdir, at, saves=[at], chunk=chunk)
    assert lines(workdir) == straight(workdir, chunk)


def test_interrupted_again_and_again_within_one_window(workdir):
    for first, until in ((0, 7), (7, 8), (8, 10), (10, 22)):
        train(workdir, first, until, saves=[until])
    assert lines(workdir) == straight(workdir)


@pytest.mark.parametrize("back", [3, 6, 8, 10])
def test_gone_back_to_an_older_checkpoint(workdir, back):
    train(workdir, until=17, saves=[3, 6, 8, 10, 14, 16])
    train(workdir, back, until=11, saves=[back])  # stops again, having saved nothing
    train(workdir, back, saves=[9, 14, 16])
    assert lines(workdir) == straight(workdir)


def test_a_run_that_starts_anew_forgets_what_was_summed_up(workdir):
    train(workdir, until=4, saves=[3])
    train(workdir, saves=[])
    assert lines(workdir) == straight(workdir)


def stopped_by_an_earlier_version(path, kept):
    """Stop after step 8; what is summed up is in a file, and the checkpoint knows nothing of it."""
    train(path, until=8, saves=[8])
    seal = kept[str(path)].pop(8)["log"]
    sums = {name: float.fromhex(value) for name, value in seal["sums"].items()}
    record = {"step": 8, "steps": seal["window"], "sums": sums}
    (path / "log_window.jsonl").write_text(json.dumps(record) + "\n")
    text = [json.dumps(line) + "\n" for line in logged.lines(path, without=())]
    (path / "metrics.jsonl").write_text("".join(text))


def test_a_run_of_an_earlier_version_goes_on_from_its_own_sums(workdir, kept):
    stopped_by_an_earlier_version(workdir, kept)
    train(workdir, 8)
    assert lines(workdir) == straight(workdir)


@pytest.mark.parametrize("damage", [False, True], ids=["gone", "damaged"])
def test_without_sums_on_disk_the_next_line_averages_what_was_seen(tmp_path, kept, damage):
    path = epath.Path(tmp_path)
    stopped_by_an_earlier_version(path, kept)
    (path / "log_window.jsonl").unlink()
    if damage:
        (path / "log_window.jsonl").write_text('{"step": 8, "steps": 2, "sums": {"loss": "x"}}\n')
    said = " ".join(train(path, 8))
    assert ("log_window.jsonl is damaged: the first line of metrics after step 8" in said) == damage
    expected = np.mean(STEPS["loss"][8:12], dtype=np.float64)
    np.testing.assert_allclose(lines(path)[1]["loss"], expected, rtol=1e-14)


def test_sums_of_other_metrics_are_left_alone(tmp_path):
    path = epath.Path(tmp_path)
    train(path, until=8, saves=[8], metrics={name: STEPS[name] for name in ("loss", "lr")})
    train(path, 8)
    line = lines(path)[1]
    for name in ("loss", "gradient_norm"):
        expected = np.mean(STEPS[name][8:12], dtype=np.float64)
        np.testing.assert_allclose(line[name], expected, rtol=1e-14)


def test_a_number_that_is_none_is_null_in_its_own_window_alone(workdir):
    broken = STEPS | {"gradient_norm": np.where(np.arange(TOTAL) == 6, np.nan, 1)}
    train(workdir, until=8, saves=[8], metrics=broken)
    train(workdir, 8, metrics=broken)
    assert [line["gradient_norm"] for line in lines(workdir)] == [1, None, 1, 1]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_stops_the_run_before_its_line(tmp_path, value):
    broken = STEPS | {"loss": np.where(np.arange(TOTAL) == 8, value, 1).astype(np.float32)}
    with pytest.raises(UserError, match="the loss is not finite in steps 9 to 10; the last good"):
        train(epath.Path(tmp_path), chunk=2, metrics=broken)
    assert [line["step"] for line in lines(tmp_path)] == [6]


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "rank", lambda: 1)
    train(epath.Path(tmp_path), until=8, saves=[8])
    assert list(tmp_path.iterdir()) == []
