"""Work in threads: what it returns and raises, and that signals are heard meanwhile."""

import hashlib
import os
import signal
import threading

import pytest

from simclr_jax import background
from simclr_jax.background import Work


def test_it_returns_and_raises_what_the_action_does():
    assert Work(lambda: 3).result() == 3

    def fail():
        raise ValueError("of the action")

    with pytest.raises(ValueError, match="of the action"):
        Work(fail).result()


def test_signs_of_life_until_it_is_done(monkeypatch):
    monkeypatch.setattr(background, "POLL_SECS", 0.01)
    three, signs = threading.Event(), []

    def sign(seconds):
        signs.append(seconds)
        if len(signs) == 3:
            three.set()

    Work(three.wait).result(sign)
    assert len(signs) >= 3 and signs == sorted(signs) and signs[0] > 0


class Heard(BaseException):
    """Raised by a signal handler."""


def test_a_signal_is_heard_while_it_is_outside_python():
    over = threading.Event()

    def work():
        os.kill(os.getpid(), signal.SIGUSR1)
        hashlib.pbkdf2_hmac("sha256", b"", b"", 1_000_000)
        over.set()

    def handle(number, frame):
        raise Heard

    previous = signal.signal(signal.SIGUSR1, handle)
    try:
        with pytest.raises(Heard):
            Work(work).result()
        assert not over.is_set(), "it was heard afterwards"
        assert background.left()
    finally:
        signal.signal(signal.SIGUSR1, previous)
    over.wait()
