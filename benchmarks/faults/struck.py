"""Run a door of the package, during which something is done to its surroundings.

    python benchmarks/faults/struck.py MODULE:NAME CALL 'SHELL COMMAND' DOOR --flag=value ...

Just before that call of the function another process runs the command.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "tests" / "e2e"))

import disks

from simclr_jax import entry

if __name__ == "__main__":
    place, call, command, door, *rest = sys.argv[1:]
    sys.argv = [f"simclr_jax/{door}.py", *rest]
    main = importlib.import_module(f"simclr_jax.{door}").main
    if place:
        disks.When(place, int(call), command).arm()
    entry.run(main)
