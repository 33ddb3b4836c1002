"""`python -m simclr_jax.export` as a user meets it."""

from __future__ import annotations

import doors
import numpy as np
import pytest
from stages.written import write_run

pytestmark = pytest.mark.e2e


def test_a_run_becomes_a_file(tmp_path):
    run, out = write_run(tmp_path / "run"), tmp_path / "x.npz"
    arguments = (f"--checkpoint={run}", "--format=numpy", f"--out={out}", "--tap=h,logits")
    ended = doors.run(tmp_path, *arguments, door="export")
    assert ended.code == 0, ended
    lines = ended.out.splitlines()
    assert lines[1] == "taps      h, logits" and lines[-1] == f"written   {out}", ended.out
    with np.load(out) as archive:
        assert archive["params/classifier/dense/bias"].shape == (4,)
    again = doors.run(tmp_path, *arguments, door="export")
    assert again.code == 1 and again.err.endswith("is there already: remove it, or name another\n")


def test_what_is_missing_is_named(tmp_path):
    ended = doors.run(tmp_path, "--checkpoint=runs/x", "--out=x.npz", door="export")
    assert (ended.code, ended.err) == (1, "error: --format is missing (see --help)\n")
