"""Orbax's threads stay silent about what is raised anyway, and about nothing else."""

import asyncio
import sys
import time

import tensorstore

from simclr_jax.train.orbax_errors import hush_orbax


def finish_after_the_loop():
    """Finish what an event loop of Python waits for after that has been closed."""
    promise, future = tensorstore.Promise.new()

    async def wait():
        await future

    async def begin():
        tasks.append(asyncio.ensure_future(wait()))
        await asyncio.sleep(0.01)

    tasks: list[object] = []
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)  # a pending task is what this is about
    loop.run_until_complete(begin())
    loop.close()
    promise.set_result(1)
    time.sleep(0.1)


class Broken:
    def __del__(self):
        raise RuntimeError("of somebody else")


def test_files_under_way_when_a_save_fails_are_not_spoken_of(monkeypatch):
    said = []
    monkeypatch.setattr(sys, "unraisablehook", lambda told: said.append(str(told.exc_value)))
    finish_after_the_loop()
    assert said == ["Event loop is closed"], "TensorStore does something else now"
    hush_orbax()
    hush_orbax()
    finish_after_the_loop()
    Broken()
    assert said == ["Event loop is closed", "of somebody else"]
