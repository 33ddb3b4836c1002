"""A step of FNC that a test made is judged by the settings that it says, as the official ones."""

from __future__ import annotations

import made
import pytest
import test_fnc_steps
from test_any_labelled_loss import false_negatives

pytestmark = [pytest.mark.x64, pytest.mark.slow]


def test_a_step_is_judged_by_its_own_settings(tmp_path, monkeypatch):
    recording = false_negatives(tmp_path, "fnc_memory", memory_multiplier=5, hidden_norm=True)
    judge = lambda r: made.judge(test_fnc_steps.test_a_step, r, monkeypatch=monkeypatch)  # noqa: E731
    assert judge(recording) == 4
    for wrong in ({"threshold": 0.9}, {"temperature": 0.5}):
        with pytest.raises(AssertionError, match="above"):
            judge(recording.with_settings(**wrong))
