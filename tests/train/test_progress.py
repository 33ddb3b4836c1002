"""What a person sees while a run goes on."""

import io
import re
import threading

import pytest
from etils import epath

from simclr_jax import background
from simclr_jax.train import progress
from simclr_jax.train.progress import Console, Speed, duration, progress_line, shown
from simclr_jax.train.timetable import Timetable


class Terminal(io.StringIO):
    def isatty(self):
        return True

    def screen(self):
        """Return the lines a terminal would show, each without what was overwritten."""
        rows = []
        for line in self.getvalue().split("\n"):
            cells = []
            for part in line.split("\r"):
                cells[: len(part)] = part
            rows.append("".join(cells).rstrip())
        return rows


def test_names_that_no_terminal_should_get_are_escaped(tmp_path):
    """Bytes that are no UTF-8, as in names of files, and what moves the cursor."""
    printed = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    console = Console(epath.Path(tmp_path), printed)
    console.say("image \udcff\x1b[2J.jpg\nthe second line")
    console.status("run \udcff")
    console.close()
    said = r"image \udcff\x1b[2J.jpg"
    assert printed.buffer.getvalue().decode() == f"{said}\nthe second line\nrun \\udcff\n"
    kept = [line.split("  ", 1)[1] for line in (tmp_path / "log.txt").read_text().splitlines()]
    assert kept == [said, "the second line", r"run \udcff"]


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock)
    monkeypatch.setattr(progress.time, "perf_counter", clock)
    return clock


@pytest.mark.parametrize(
    "seconds, text",
    [
        (0, "0:00"),
        (59.4, "0:59"),
        (59.6, "1:00"),
        (3599.6, "1:00:00"),
        (3723, "1:02:03"),
        (86400 + 7384, "1d 02:03:04"),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_speed_counts_neither_the_first_step_nor_pauses(clock):
    speed = Speed(batch_size=10)
    speed.add(1)
    assert speed.images_per_second == 0
    clock.now += 2
    speed.add(4)
    assert speed.images_per_second == 20
    speed.pause()
    clock.now += 1000  # an evaluation
    speed.add(1)
    assert speed.images_per_second == 20
    clock.now += 1
    speed.add(3)
    assert speed.images_per_second == 30


def test_input_wait_is_the_share_of_time_spent_on_batches(clock):
    def batches():
        for i in range(5):
            clock.now += 3  # to make one
            yield i

    speed = Speed(batch_size=10)
    for batch in speed.watch(batches()):
        clock.now += 1  # to use it
        speed.add(1)
        assert speed.input_wait == (0.75 if batch else 0)  # the first only starts the clock


def test_progress_line(clock):
    timetable = Timetable(100, 10, 200, 0, 1.0, 1, 1, 0, 1)
    speed = Speed(10)
    metrics = shown({"loss": "loss {:.2f}", "lr": "lr {:g}"}, {"other": 1.0, "loss": 1.234})
    assert progress_line(50, timetable, metrics, speed) == "step 50/200   25%  loss 1.23"
    speed.add(1)
    clock.now += 1
    speed.add(2)
    line = progress_line(50, timetable, metrics, speed)
    assert line == "step 50/200   25%  1:15 left  loss 1.23  20 images/s"


def test_a_format_may_show_other_metrics_beside_its_own():
    formats = {"rank_h": "rank of h {:.1f}, of z {rank_z:.1f}", "loss": "loss {:.2f}"}
    metrics = {"loss": 1.234, "rank_h": 12.34, "rank_z": 5.12}
    assert shown(formats, metrics) == "rank of h 12.3, of z 5.1  loss 1.23"
    assert shown(formats, {"loss": 1.234}) == "loss 1.23"


def test_a_terminal_renews_one_line(tmp_path, clock):
    stream = Terminal()
    console = Console(epath.Path(tmp_path), stream)
    console.status("step 1 of a long line")
    console.status("step 2")
    assert stream.screen() == ["step 2"]
    console.say("held out")
    console.status("step 3")
    console.close()
    assert stream.screen() == ["held out", ""]


def test_a_line_longer_than_the_terminal_is_cut_and_so_can_be_erased(tmp_path, clock, monkeypatch):
    monkeypatch.setenv("COLUMNS", "12")
    stream = Terminal()
    console = Console(epath.Path(tmp_path), stream)
    console.status("step 1 of a long line")
    assert stream.screen() == ["step 1 of a"]
    console.close()
    assert "step 1 of a long line" in (tmp_path / "log.txt").read_text()


def test_a_file_gets_a_line_every_few_seconds_and_no_control_characters(tmp_path, clock):
    stream = io.StringIO()
    console = Console(epath.Path(tmp_path), stream)
    for step in range(12):
        console.status(f"step {step}")
        clock.now += 1
    console.say("done")
    console.close()
    assert stream.getvalue() == "step 0\nstep 5\nstep 10\ndone\n"


def test_the_log_keeps_every_line_with_its_time_across_runs(tmp_path, clock):
    for text in ("first", "a table\nof two lines"):
        console = Console(epath.Path(tmp_path), Terminal())
        console.say(text)
        console.close()
    log = (tmp_path / "log.txt").read_text()
    assert [
        re.sub(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  ", "", line) for line in log.splitlines()
    ] == [
        "first",
        "a table",
        "of two lines",
    ]


def test_what_takes_long_gives_signs_of_life_counted_from_the_last_line(tmp_path, monkeypatch):
    stream, go = io.StringIO(), threading.Event()
    monkeypatch.setattr(background, "POLL_SECS", 0.01)
    monkeypatch.setattr(progress, "SIGN_SECS", 0.05)
    monkeypatch.setattr(progress, "STATUS_SECS", 0.0)
    console = Console(epath.Path(tmp_path), stream)

    def watched():
        while stream.getvalue().count("counting, 0:00 so far") < 2:
            go.wait(0.01)
        return 7

    assert console.during("counting", watched) == 7
    monkeypatch.setattr(progress, "SIGN_SECS", 1000.0)
    console.say("a line")
    assert console.during("counting", lambda: go.wait(0.1)) is False
    assert stream.getvalue().endswith("a line\n")
    console.close()
