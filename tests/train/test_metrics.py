"""The metrics file across interruptions."""

import resource

import pytest
from etils import epath
from logged import lines

from simclr_jax.errors import UserError
from simclr_jax.train.metrics import MetricsWriter


@pytest.fixture
def workdir(tmp_path):
    return epath.Path(tmp_path)


def write(workdir, resume_step, *steps):
    writer = MetricsWriter(workdir, resume_step)
    for step in steps:
        writer.write(step, {"loss": step / 4})
    writer.close()


def test_resuming_removes_what_came_after_the_checkpoint_and_keeps_the_rest_to_the_byte(workdir):
    write(workdir, 0, 0, 1, 2, 2, 3)
    kept = (workdir / "metrics.jsonl").read_text().splitlines()[:4]
    write(workdir, 2)
    assert (workdir / "metrics.jsonl").read_text().splitlines() == kept
    write(workdir, 2, 3, 4)
    assert [line["step"] for line in lines(workdir)] == [0, 1, 2, 2, 3, 4]


@pytest.mark.parametrize("half", ['{"st', '{"step": 3', '{"step": 3, "loss": 0.5}'])
def test_a_line_cut_by_a_kill_is_removed(workdir, half):
    write(workdir, 0, 1, 2)
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write(half)
    write(workdir, 5, 6)
    assert [line["step"] for line in lines(workdir)] == [1, 2, 6]


def test_numbers_that_json_does_not_know_become_null_without_a_word(workdir, caplog):
    writer = MetricsWriter(workdir, 0)
    writer.write(1, {"a": float("nan"), "b": float("inf"), "c": 1.5})
    writer.close()
    assert lines(workdir) == [{"step": 1, "a": None, "b": None, "c": 1.5}]
    assert not caplog.records


def test_flush_puts_lines_where_another_process_reads_them(workdir):
    writer = MetricsWriter(workdir, 0)
    writer.write(1, {"loss": 2.0})
    writer.flush()
    assert lines(workdir) == [{"step": 1, "loss": 2.0}]
    writer.close()
    events = list((workdir / "tensorboard").iterdir())
    assert len(events) == 1 and b"loss" in events[0].read_bytes()


@pytest.mark.parametrize("lines_written", [1, 300], ids=["at the end", "in the middle"])
def test_a_full_disk_is_one_line_however_much_is_buffered(workdir, lines_written):
    writer = MetricsWriter(workdir, 0)
    writer.flush()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        # 300 lines do not fit into buffers, and would fill the queue of a thread that has died.
        with pytest.raises(UserError, match="cannot be written"):
            for step in range(lines_written):
                writer.write(step, {"loss": 1.0, "accuracy": 0.5})
            writer.flush()
        with pytest.raises(UserError, match="cannot be written"):
            writer.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
