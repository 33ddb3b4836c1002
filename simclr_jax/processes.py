"""Several processes, one run: they start together, agree, and end together.

Every process runs the same program on its own devices. The first one alone writes: it keeps the
workdir, and tells the others what came of it.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from simclr_jax import errors
from simclr_jax.errors import Unreachable, UserError

HEARTBEAT_SECS = 60
PORTS = 65535
START_SECS = 300  # that processes wait for one another at the start

Value = TypeVar("Value")


class Told(UserError):
    """What another process found wrong, and has printed."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


@contextlib.contextmanager
def joined(
    distributed: bool,
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    heartbeat_secs: int = HEARTBEAT_SECS,
) -> Iterator[None]:
    """Run the `with` block as one process of a run.

    A process that fails ends at once. The others notice by its missing heartbeat and are aborted
    (SIGABRT) by JAX, whatever they are doing; nothing they would have to clean up matters.

    Args:
      distributed: False runs alone.
      coordinator: `HOST:PORT` of process 0. Without it and the next two, JAX asks the cluster
        (Cloud TPU, SLURM, Kubernetes, Open MPI) for all three.
      processes: how many there are.
      process: which of them this is.
      heartbeat_secs: silence after which a process counts as dead.

    Raises:
      UserError: if the arguments contradict each other, or there is no cluster.
    """
    explicit = (coordinator, processes, process)
    if not distributed:
        if any(given is not None for given in explicit):
            raise UserError("--coordinator, --processes and --process need --distributed")
        yield
        return
    _start(*explicit, heartbeat_secs)
    try:
        yield
    except BaseException as error:
        if _may_be_another(error):
            _await_verdict(error, heartbeat_secs)
        _leave(error)  # a normal exit would wait for the others, who wait for this process
    try:
        jax.distributed.shutdown()
    except RuntimeError as error:  # of XLA: another process ended before it came here
        reason = " ".join(str(error).split())[:200]
        raise Unreachable(
            f"process {rank()} is done, but not all others ended with it ({reason}): the same "
            "command continues"
        ) from error


def _start(
    coordinator: str | None, processes: int | None, process: int | None, heartbeat_secs: int
) -> None:
    given = [value is not None for value in (coordinator, processes, process)]
    if any(given) and not all(given):
        raise UserError("give all of --coordinator, --processes and --process, or none of them")
    if processes is not None and process is not None and not 0 <= process < processes:
        raise UserError(
            f"--process is {process}: with --processes={processes} it is 0 or more and below"
        )
    if coordinator is not None and not _is_address(coordinator):
        raise UserError(
            f'--coordinator is "{coordinator}": it must be HOST:PORT of process 0, a port from 1 '
            f"to {PORTS}"
        )
    if heartbeat_secs < 5:
        raise UserError(f"--heartbeat_secs is {heartbeat_secs}: it must be at least 5")
    if coordinator is not None and process:
        _await_coordinator(coordinator)
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            coordinator_bind_address=_bind_address(coordinator),
            heartbeat_timeout_seconds=heartbeat_secs,
            # Else SLURM, say, would give this process one GPU of all that its machine has.
            cluster_detection_method="deactivate" if all(given) else None,
            initialization_timeout=START_SECS,
        )
    except ValueError as error:
        raise UserError(
            f"--distributed finds no cluster ({error}): on other machines than Cloud TPU, SLURM, "
            "Kubernetes and Open MPI give --coordinator, --processes and --process"
        ) from error


def _is_address(text: str) -> bool:
    """Tell whether a text is `HOST:PORT`; whether the host is there shows when it is called."""
    host, _, port = text.rpartition(":")
    named = bool(host) and not any(character.isspace() for character in host)
    decimal = port.isascii() and port.isdecimal() and len(port) <= len(str(PORTS))
    return named and decimal and 1 <= int(port) <= PORTS


def _bind_address(coordinator: str | None) -> str | None:
    """Return where process 0 listens: on this machine alone if its address is of no other use.

    None leaves it to JAX, which listens to all the world.
    """
    host, _, _ = (coordinator or "").rpartition(":")
    return coordinator if _is_loopback(host) else None


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _await_coordinator(coordinator: str) -> None:
    """Wait until process 0 can be reached; JAX would abort without a word about what is wrong."""
    host, _, port = coordinator.rpartition(":")
    deadline = time.monotonic() + START_SECS
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise Unreachable(
                    f"--coordinator is {coordinator}, but nobody answers there ({error}): give the "
                    f"address of process 0, and start it within {START_SECS} s"
                ) from error
        time.sleep(0.5)


def _may_be_another(error: BaseException) -> bool:
    """Tell whether an error may come of another process that is gone."""
    own = isinstance(error, SystemExit | KeyboardInterrupt) or errors.of_the_system(error)
    return not own and "RESOURCE_EXHAUSTED" not in str(error)


def _await_verdict(error: BaseException, heartbeat_secs: int) -> None:
    """Give JAX the time to find out that a process is gone, and to abort this one as all others.

    Where connections break before that, a collective fails first. The exit code should not depend
    on who is faster: an abort says that the same command may be run again.
    """
    reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
    errors.say(
        f"process {rank()}: {reason}; if another process is gone, this one is aborted within "
        f"{2 * heartbeat_secs} s, and the same command continues from the last checkpoint"
    )
    time.sleep(2 * heartbeat_secs)


def _leave(error: BaseException) -> None:
    """Say what was wrong, and end this process without waiting for anything."""
    code, said = 1, None if "--debug" in sys.argv else errors.of_the_system(error)
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else 1
    elif isinstance(error, KeyboardInterrupt):
        code = 130
    elif said is not None:
        code = said.code
        if not isinstance(said, Told):
            errors.say(f"process {rank()}: {said}" if rank() else str(said))
    else:
        traceback.print_exception(error)
    errors.flush()
    os._exit(code)


def count() -> int:
    """Return how many processes this run has."""
    return jax.process_count()


def rank() -> int:
    """Return which of them this is, counted from 0."""
    return jax.process_index()


def everyone(value: Value) -> list[Value]:
    """Return what each process has here, a value that JSON knows, in the order of their ranks.

    All processes must call this, and the functions below, at the same point of their main thread.
    """
    if count() == 1:
        return [value]
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(data.size))
    room = 1 << max(8, int(np.max(sizes) - 1).bit_length())  # few sizes, few programs
    rows = multihost_utils.process_allgather(np.pad(data, (0, room - data.size)))
    return [json.loads(bytes(row[:size])) for row, size in zip(rows, sizes, strict=True)]


def on_first(action: Callable[[], Value]) -> Value:
    """Run `action` in the first process alone; return what it returned there, which JSON knows.

    Raises:
      UserError: in all processes, if the action raises it.
    """
    if count() == 1:
        return action()
    here: tuple[Any, tuple[str, int] | None] = (None, None)
    mistake = None
    if rank() == 0:
        try:
            here = action(), None
        except UserError as error:
            mistake, here = error, (None, (str(error), error.code))
    result, said = everyone(here)[0]
    if mistake:
        raise mistake
    if said is not None:
        raise Told(*said)
    return result


def check_same(what: str, value: Any) -> None:
    """Raise `UserError` if a process has another value, which JSON knows, than the first."""
    values = everyone(value)
    for other, found in enumerate(values):
        if found != values[0]:
            raise UserError(
                f"process {other} has other {what} than process 0: give all the same command, code "
                "and data"
            )
