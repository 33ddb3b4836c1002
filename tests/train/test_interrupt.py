"""Signals ask to stop, and a second one insists."""

import os
import signal

import pytest

from simclr_jax.train import interrupt
from simclr_jax.train.interrupt import Asked, AtOnce, StopRequest


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


def test_where_there_is_nothing_to_save_a_sigterm_ends_at_once():
    before = signal.getsignal(signal.SIGTERM)
    with AtOnce():
        with pytest.raises(Asked) as asked:
            send(signal.SIGTERM)
            signal.pthread_sigmask(signal.SIG_BLOCK, [])
        send(signal.SIGTERM)  # the same, passed on by a parent: closing goes on
        signal.pthread_sigmask(signal.SIG_BLOCK, [])
    assert asked.value.code == 75
    assert signal.getsignal(signal.SIGTERM) is before


def test_signals_go_to_the_loop_from_where_it_listens():
    with AtOnce(), StopRequest(listening=False) as stop:
        with pytest.raises(Asked):
            send(signal.SIGTERM)
            signal.pthread_sigmask(signal.SIG_BLOCK, [])
        stop.listen()
        send(signal.SIGTERM)
        assert stop.after_chunk() == signal.SIGTERM
