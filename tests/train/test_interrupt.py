"""Signals ask to stop, and a second one insists."""

import os
import signal

import pytest

from simclr_jax.train import interrupt
from simclr_jax.train.interrupt import StopRequest


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_asks_to_stop_after_the_chunk(number):
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert stop.after_chunk() == 0
        send(number)
        assert stop.after_chunk() == number
    assert signal.getsignal(number) is before


def test_a_sigterm_that_comes_twice_at_once_asks_once():
    with StopRequest() as stop:
        send(signal.SIGTERM)
        send(signal.SIGTERM)
        assert stop.after_chunk() == signal.SIGTERM


@pytest.mark.parametrize(
    "first, second",
    [
        (signal.SIGTERM, signal.SIGTERM),
        (signal.SIGINT, signal.SIGINT),
        (signal.SIGTERM, signal.SIGINT),
        (signal.SIGINT, signal.SIGTERM),
    ],
)
def test_a_second_signal_interrupts_at_once(first, second, monkeypatch):
    if first == second == signal.SIGTERM:
        monkeypatch.setattr(interrupt, "SAME_SECS", 0.0)
    with StopRequest():
        send(first)
        with pytest.raises(KeyboardInterrupt):
            send(second)
            signal.pthread_sigmask(signal.SIG_BLOCK, [])  # handlers have run when it returns
