"""Train as `simclr_jax.main` does, but one process gets a signal in the middle.

python tests/e2e/struck.py RANK STEP SIGNAL --config=... --workdir=...
"""

import os
import sys
import time

from simclr_jax import entry, main, processes
from simclr_jax.train.log import Log

rank, step, number = map(int, sys.argv[1:4])
del sys.argv[1:4]
add = Log.add


def struck(log, steps, metrics):
    add(log, steps, metrics)
    if processes.rank() == rank and steps[-1] + 1 >= step:
        if steps[-1] + 1 == step:
            os.kill(os.getpid(), number)
            time.sleep(3)  # JAX looks for a SIGTERM once a second
        time.sleep(0.3)


Log.add = struck  # type: ignore[method-assign]
entry.run(main.main)
