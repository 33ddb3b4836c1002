"""How a run begins on several hosts."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from train import tiny

from simclr_jax import processes
from simclr_jax.errors import UserError
from simclr_jax.stages import run


class Prepared(Exception):
    """Ends a run once it is known what it goes on from."""


@pytest.mark.parametrize("seen", [None, {"seed": 0}])
def test_all_hosts_go_by_what_the_first_has_found_in_the_workdir(seen, tmp_path, monkeypatch):
    """A network file system may not show a host yet what another has saved."""
    before = {"seed": 1}

    def prepare(config, devices, kept, record, open_all):
        raise Prepared(kept, record)

    monkeypatch.setattr(run, "recipe_before", lambda path: seen)
    monkeypatch.setattr(run, "prepare", prepare)
    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes, "rank", lambda: 1)
    monkeypatch.setattr(processes, "everyone", lambda value: [(before, None), value])
    with pytest.raises(Prepared) as found:
        run.run(tiny.recipe(), str(tmp_path))
    kept, record = found.value.args
    assert record == before and str(kept) == str(tmp_path / "index")


@pytest.mark.parametrize(
    "placement, package, called",
    [("split", "cv2", "OpenCV"), ("canvas", "cv2", "OpenCV"), ("canvas", "simplejpeg", "jpeg")],
)
def test_a_missing_library_is_found_before_anything_is_written(
    placement, package, called, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, package, None)
    np.savez(tmp_path / "images.npz", images=tiny.sorted_images().pixels)
    c = tiny.recipe(data__source="memory", data__path=str(tmp_path / "images.npz"))
    c.eval.probe = c.eval.knn = False
    c.augment.placement = placement
    c.augment.grid = "opencv" if placement == "split" else c.augment.grid
    c.augment.jpeg_scaling = package == "simplejpeg"
    with pytest.raises(UserError, match=f"needs .*{called}, which is not installed: pip install"):
        run.run(c, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
