"""Process 0 listens where the others find it, and to nobody else's address."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import pytest

from simclr_jax import processes

ROOT = Path(__file__).parents[2]

# Joins as process 0 and prints the addresses at which it listens, as /proc has them.
LISTENING = textwrap.dedent(
    """
    import os, sys
    from pathlib import Path
    from simclr_jax import processes

    def sockets():
        for entry in Path("/proc/self/fd").iterdir():
            try:
                yield os.readlink(entry)
            except OSError:
                pass

    flags = dict(word[2:].partition("=")[::2] for word in sys.argv[1:])
    number = int(flags["process"])
    with processes.joined(True, flags["coordinator"], int(flags["processes"]), number):
        ours = {name[8:-1] for name in sockets() if name.startswith("socket:")}
        for kind in ("tcp", "tcp6"):
            for line in Path(f"/proc/net/{kind}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and fields[9] in ours:
                    print("listens", fields[1].partition(":")[0], flush=True)
    """
)
LOOPBACK = ("0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000")


def test_one_machine_alone_is_listened_to(tmp_path):
    script = tmp_path / "listening.py"
    script.write_text(LISTENING)
    # launch/local gives the coordinator's address; --distributed has no value.
    command = [ROOT / "launch" / "local", "-n", "1", "--", sys.executable, script]
    done = subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": os.fspath(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done
    found = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("listens")]
    assert found and set(found) <= {*LOOPBACK}, done.stdout


@pytest.mark.parametrize(
    "coordinator, bound",
    [
        ("127.0.0.1:5", "127.0.0.1:5"),
        ("localhost:5", "localhost:5"),
        ("[::1]:5", "[::1]:5"),
        ("127.8.0.1:5", "127.8.0.1:5"),
        ("10.0.0.1:5", None),
        ("node7:5", None),
        (None, None),
    ],
)
def test_the_address_it_binds(coordinator, bound, monkeypatch):
    given = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **named: given.append(named))
    number = None if coordinator is None else 0
    processes._start(coordinator, number if number is None else 1, number, 60)
    assert [named["coordinator_bind_address"] for named in given] == [bound]
