"""Two seeds of the quickstart, trained to the end: minutes each, `make test-release`."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.release
def test_the_encoder_is_15_points_above_raw_pixels(tmp_path):
    command = [sys.executable, ROOT / "benchmarks" / "digits_seeds.py", f"--workdir={tmp_path}"]
    done = subprocess.run([*command, "--seeds=2"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    margins = [float(points) for points in re.findall(r"([+-][\d.]+) points", done.stdout)]
    assert len(margins) == 2 and min(margins) >= 15.0, done.stdout
