"""Run `benchmarks/speedrun.py` in this process with something arranged beforehand.

    python tests/e2e/raced.py HOW ARGUMENTS

HOW is `plain`; `counted`: seconds are events, see `counting`; or `SIGNAL:STEP:FILE`: the signal
comes when the step is logged, once the file is there.
"""

import runpy
import signal
import sys
import time
from pathlib import Path

import doors

WAITING, COMPILING, EVALUATING = 1, 1000, 100_000


def counting():
    """Let no time pass but while devices are waited for, programs compiled, encoders evaluated."""
    import jax

    from simclr_jax.stages.monitor import Monitor

    now = [0.0]
    time.perf_counter = lambda: now[0]

    def costly(holder, name, seconds):
        call = getattr(holder, name)

        def costing(*arguments, **named):
            now[0] += seconds
            return call(*arguments, **named)

        setattr(holder, name, costing)

    costly(jax, "block_until_ready", WAITING)
    costly(jax.stages.Lowered, "compile", COMPILING)
    costly(Monitor, "evaluate", EVALUATING)


if __name__ == "__main__":
    how, *sys.argv[1:] = sys.argv[1:]
    if how == "counted":
        counting()
    elif how != "plain":
        name, step, file = how.split(":")
        doors.Blow(getattr(signal, name), int(step), Path(file) if file else None).arm()
    sys.argv[0] = str(doors.ROOT / "benchmarks" / "speedrun.py")
    runpy.run_path(sys.argv[0], run_name="__main__")
