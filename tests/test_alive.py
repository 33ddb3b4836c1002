"""Signs of life of work that takes long."""

from __future__ import annotations

from simclr_jax import alive


def test_signs_of_life_come_while_something_is_at_work():
    said: list[str] = []
    with alive.during("compiling", said.append, secs=0.02):
        while len(said) < 2:
            pass
    count = len(said)
    assert said[0] == "working   compiling, 0:00 so far"
    with alive.during("nothing", said.append, secs=60):
        pass
    assert len(said) == count


def test_a_line_may_say_how_far_it_is():
    said: list[str] = []
    with alive.lines(lambda gone: "half" if said else "begun", said.append, secs=0.02):
        while len(said) < 2:
            pass
    assert said[:2] == ["begun", "half"]


def test_signs_of_life_end_where_nobody_listens():
    def closed(line):
        raise BrokenPipeError

    with alive.during("compiling", closed, secs=0.001):
        pass
