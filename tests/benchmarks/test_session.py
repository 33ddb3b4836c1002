"""Time that is left, rows that no kill loses, and processes that fail, hang or end."""

import json
import textwrap

import numpy as np
import pytest
from measured import bench, proofs
from measured.session import Session
from measured.worker import Failed, Worker

SCRIPT = """
import os
from measured import worker

def fail(kind):
    raise RuntimeError(kind)

def leave():
    os._exit(3)

def chatter():
    print("a library prints this")
    os.system("echo and a program this")
    return "heard"

def twice(x):
    return 2 * x

worker.serve({function.__name__: function for function in (fail, leave, chatter, twice)})
"""


@pytest.fixture
def session(tmp_path):
    """Return a session of 100 seconds whose clock is `session.now[0]`."""
    now, said = [0.0], []
    made = Session(100, tmp_path / "rows.jsonl", said.append, clock=lambda: now[0])
    made.now, made.said = now, said
    yield made
    made.close()


def test_rows_are_written_at_once(session, tmp_path):
    assert session.begin("first", 60, "what it is")
    session.now[0] = 41.0
    session.row(what="ours", ms=12.34567)
    (row,) = map(json.loads, (tmp_path / "rows.jsonl").read_text().splitlines())
    assert row == {"section": "first", "at": 41.0, "what": "ours", "ms": 12.34567}
    assert session.said[-1] == "  first  what ours  ms 12.35"
    assert not session.begin("second", 60, "too long")
    assert session.rows("second")[0]["skipped"] == "wants 60 s, 59 s are left"


@pytest.fixture
def worker(tmp_path):
    path = tmp_path / "asked.py"
    path.write_text(textwrap.dedent(SCRIPT))
    with (tmp_path / "log").open("w") as log:
        made = Worker(str(path), log)
        yield made
        made.end()


def test_a_process_answers_and_goes_on_after_errors(worker, tmp_path):
    assert worker.ask("chatter", 60) == "heard"
    with pytest.raises(Failed, match="no such thing") as plain:
        worker.ask("fail", 60, kind="no such thing")
    with pytest.raises(Failed) as full:
        worker.ask("fail", 60, kind="RESOURCE_EXHAUSTED: Out of memory while trying to allocate")
    assert (plain.value.memory, full.value.memory) == (False, True)
    worker.send("twice", x=1)
    worker.send("twice", x=2)
    assert [worker.receive(60), worker.receive(60)] == [2, 4]
    said = (tmp_path / "log").read_text()
    assert "a library prints this" in said and "and a program this" in said


def test_a_process_that_ends_or_hangs_is_said(worker, tmp_path):
    with pytest.raises(Failed, match="ended with code 3"):
        worker.ask("leave", 60)
    assert worker.ended
    with pytest.raises(Failed, match="ended"):
        worker.ask("twice", 60, x=1)
    path = tmp_path / "asked.py"
    with (tmp_path / "log").open("a") as log:
        hanging = Worker(str(path), log)
        assert hanging.ask("twice", 60, x=1) == 2
        with pytest.raises(Failed, match="no answer"):
            hanging.receive(0.2)
        assert hanging.ended


def test_steps_have_turns():
    took = {"ours": iter([0.5, 0.1, 0.4, 0.1]), "theirs": iter([0.5, 0.2, 0.2, 0.3])}
    order = []

    def run(name):
        def of(calls):
            order.append((name, calls))
            return {"seconds": next(took[name]), "loss": 1.0}

        return of

    network = bench.Network("r.py", {}, 32, (1,))
    sizes = bench.Sizes(network, network, rounds=3, round_s=2.0)
    found = bench.timed(sizes, {name: run(name) for name in took})
    assert order == [("ours", 1), ("theirs", 1)] + 3 * [("ours", 4), ("theirs", 4)]
    assert [found[name]["seconds"] for name in took] == [0.1, 0.2]
    assert found["ours"]["spread"] == pytest.approx(3)
    assert bench.rates(64, found["ours"])["views_per_s"] == pytest.approx(640)


class Card(bench.Bench):
    """A bench whose process is a card of 1000 bytes that says so when a batch is too large."""

    fits = 256

    def __init__(self, session):
        network = bench.Network("r.py", {}, 32, (128, 256, 512, 1024), build_s=30)
        super().__init__(session, bench.Sizes(network, network))
        self.asked = []

    def ours(self, call, **arguments):
        self.asked.append((call, arguments))
        if call == "machine":
            return {"memory": 1000}
        if call == "planned":
            return {str(batch): batch for batch in arguments["batches"]}
        if arguments["batch"] > self.fits:
            raise Failed("RESOURCE_EXHAUSTED", memory=True)
        self.session.now[0] += 20
        return {"batch": arguments["batch"]}


def test_the_next_smaller_batch_is_tried_where_the_plan_is_wrong(session):
    card = Card(session)
    session.begin("fit", 0, "")
    found = bench.fitting(card, "large", card.sizes.large, share=0.9)
    built = [arguments["batch"] for call, arguments in card.asked if call == "build"]
    assert built == [512, 256] and found["planned_bytes"] == 256
    assert [row["batch"] for row in session.rows("fit")] == [512]
    card.fits = 1024
    found = bench.fitting(card, "larger", card.sizes.large, share=2.0, above=256)
    assert found["batch"] == 1024
    with pytest.raises(Failed, match="no batch above 1024"):
        bench.fitting(card, "larger", card.sizes.large, share=2.0, above=1024)
    card.fits = 0
    with pytest.raises(Failed, match="none of the batches"):
        bench.fitting(card, "large", card.sizes.large, share=0.9, above=512)


def test_nothing_is_built_that_cannot_be_done_in_time(session):
    card = Card(session)
    card.build("one", card.sizes.large, 128)
    session.now[0] = 85.0  # the first took 20 seconds, 15 are left
    with pytest.raises(Failed, match="wants about 20 s, 15 s are left"):
        card.build("two", card.sizes.large, 128)


def test_differences_of_states():
    one = {"a": np.float32([1, 2, -4]), "b": np.int32([1])}
    assert proofs.differences(one, dict(one))["same"]
    found = proofs.differences(one, one | {"a": np.float32([1, 2.5, -4])})
    assert found == {"same": False, "arrays": 2, "different": 1, "largest": 0.125}
    assert not proofs.differences(one, one | {"c": np.float32([0])})["same"]
    nothing = {"a": np.float32([0.0])}
    assert not proofs.differences(nothing, {"a": np.float32([-0.0])})["same"]


def test_losses_of_a_killed_run(tmp_path):
    lines = ['{"step": 1, "loss": 2.5}', '{"step": 1, "knn_accuracy": 0.5}', '{"step": 2, "lo']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    assert proofs.losses(tmp_path) == {1: 2.5}
    assert proofs.losses(tmp_path / "not there") == {}
