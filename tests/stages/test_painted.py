"""What a network makes of held-out images, drawn at each evaluation and shown in the report."""

from __future__ import annotations

import dataclasses
import io
from types import SimpleNamespace

import numpy as np
import pytest
import smallest
from etils import epath
from frame import toys
from PIL import Image
from train import tiny

from simclr_jax import documents
from simclr_jax.frame import modules
from simclr_jax.reporting import record, run_sections
from simclr_jax.stages import views
from simclr_jax.stages.contact_sheet import contact_sheet
from simclr_jax.stages.inputs import Inputs

METHOD = "denoising_autoencoder"


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Replace the encoder by one that compiles at once."""
    monkeypatch.setattr(modules, "encoder", lambda config: toys.Small(modules.norm(config)))


def test_every_evaluation_draws_what_was_given_what_was_made_and_what_was_wanted(tmp_path):
    c = smallest.recipe(METHOD)
    stage, _ = tiny.make_stage(c, 1)
    images = tiny.sorted_images().take(np.arange(21))
    inputs = Inputs(c, images, images)
    measured = []
    stage = dataclasses.replace(stage, evaluate=lambda state: measured.append(state) or {"x": 1.0})
    drawing = views.painted(stage, inputs, SimpleNamespace(path=epath.Path(tmp_path)))
    first = stage.init()
    pictures = []
    for state in (first, tiny.perturbed(first)):
        assert drawing.evaluate(state) == {"x": 1.0}
        pictures.append((tmp_path / "reconstructions.png").read_bytes())
    assert pictures[0] != pictures[1] and len(measured) == 2
    shown = stage.paint(tiny.perturbed(first).variables, inputs.held_out(12))
    given, made, wanted = (np.asarray(shown[name]) for name in ("given", "made", "wanted"))
    assert list(shown) == ["given", "made", "wanted"] and given.shape == (12, 8, 8, 3)
    top = list(np.rint(np.clip(given, 0, 1) * 255).astype(np.uint8))
    expected = contact_sheet(top, {"0": made[:, None], "1": wanted[:, None]})
    found, want = (np.asarray(Image.open(io.BytesIO(png)), int) for png in (pictures[1], expected))
    assert found.shape == want.shape and np.abs(found - want).max() <= 1
    assert not np.allclose(given, wanted)


def test_a_method_without_pictures_is_left_as_it_is(tmp_path):
    stage, _ = tiny.make_stage(smallest.recipe("rotation"), 1)
    assert stage.paint is None
    assert views.painted(stage, None, None) is stage


def test_the_report_shows_the_picture_of_runs_that_have_one(tmp_path):
    runs = []
    for name in ("with", "without"):
        (tmp_path / name).mkdir()
        documents.write(tmp_path / name / "config.json", smallest.recipe(METHOD).to_dict())
        (tmp_path / name / "metrics.jsonl").write_text('{"step": 1, "epoch": 0.3, "loss": 1.0}\n')
        runs.append(tmp_path / name)
    png = io.BytesIO()
    Image.new("RGB", (7, 5), "red").save(png, "PNG")
    (runs[0] / "reconstructions.png").write_bytes(png.getvalue())
    read = [record.read(str(run)) for run in runs]
    assert read[0].painted == png.getvalue() and read[1].painted is None
    assert run_sections.painted(read[1:]) == []
    (section,) = run_sections.painted(read)
    assert section.title == "Reconstructions" and section.body.count("<img") == 1
    assert "data:image/png" in section.body and not (read[0].damaged or read[1].damaged)
