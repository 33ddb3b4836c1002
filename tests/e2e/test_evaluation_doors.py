"""From a folder to a page of pictures, by the commands of docs/evaluation.md."""

from __future__ import annotations

import json
import shutil

import doors
import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """60 images of two classes, some of them gray, none of the size of another's neighbour."""
    path = tmp_path_factory.mktemp("photographs")
    random = np.random.RandomState(0)
    for i in range(60):
        directory = path / ("dark", "light")[i % 2]
        directory.mkdir(exist_ok=True)
        pixels = random.randint(0, 90, (12 + i % 5, 15 - i % 4, 3)) + 120 * (i % 2)
        image = Image.fromarray(pixels.astype(np.uint8))
        (image.convert("L") if i % 7 == 0 else image).save(directory / f"{i:02}.png")
    return path


@pytest.fixture(scope="module")
def run(photographs, tmp_path_factory):
    pytest.importorskip("cv2", reason="placement split needs OpenCV")
    workdir = tmp_path_factory.mktemp("run")
    fields = {
        **{"data.source": "folder", "data.path": photographs, "data.labels": False},
        **{"augment.placement": "split", "augment.grid": "opencv"},
        **{"eval.probe": False, "eval.knn": False, "train.steps": 2},
    }
    settings = [f"--config.{name}={value}" for name, value in fields.items()]
    ended = doors.run(workdir, *doors.TINY, f"--workdir={workdir / 'run'}", *settings)
    assert ended.code == 0, ended
    return workdir / "run"


def call(tmp_path, door, *arguments):
    ended = doors.run(tmp_path, *arguments, door=door)
    assert "Traceback" not in ended.err, ended
    return ended


def test_from_an_unlabelled_run_to_a_sheet_of_neighbours(run, photographs, tmp_path):
    out = tmp_path / "photographs.npz"
    ended = call(tmp_path, "embed", f"--checkpoint={run}", f"--out={out}")
    assert ended.code == 0, ended
    with np.load(out) as archive:
        assert archive["features"].shape == (60, 32)
        assert sorted(archive["names"].tolist()) == sorted(
            str(path.relative_to(photographs)) for path in photographs.rglob("*.png")
        )
    ended = call(tmp_path, "search", f"--embeddings={out}", "--query=light/01.png", "--k=3")
    assert ended.code == 0 and "light/01.png" in ended.out, ended
    page = (tmp_path / "photographs.html").read_text()
    assert page.count("data:image/") == 4 and "http" not in page.replace("http-equiv", "")


def test_labels_that_training_never_saw_measure_it(run, tmp_path):
    options = ("--solver=lbfgs,knn,retrieval", "--knn=3", "--labels=90%")
    ended = call(tmp_path, "linear_probe", f"--checkpoint={run}", *options)
    assert ended.code == 0, ended
    result = json.loads((run / "results" / "lbfgs-h-90pct_labels-seed0.json").read_text())
    value = f"{100 * result['scores']['top-1']['value']:.1f} ("
    row = next(line for line in ended.out.splitlines() if line.startswith("lbfgs"))
    assert value in row and result["data"]["class_names"] == ["dark", "light"]


def test_the_report_is_one_page_of_its_own(run, tmp_path):
    ended = call(tmp_path, "report", f"--checkpoint={run}")
    assert ended.code == 0, ended
    page = (run / "report.html").read_text()
    assert "<svg" in page and "data:image/png" in page and "<script src" not in page


def test_what_is_skipped_is_said_as_a_note(finished, tmp_path):
    """And not as lines of a log, with their time, thread and place in the code."""
    workdir = shutil.copytree(finished.workdir, tmp_path / "run")
    newest = [path for path in (workdir / "checkpoints" / "20").rglob("*") if path.is_file()]
    largest = max(newest, key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1])
    ended = call(tmp_path, "embed", f"--checkpoint={workdir}", f"--out={tmp_path / 'x.npz'}")
    assert ended.code == 0 and "run@14" in ended.out, ended
    skipped, read = ended.err.splitlines()
    assert skipped.startswith(f"note      checkpoint {workdir}/checkpoints/20 is skipped: ")
    assert read == f"note      {workdir}: step 14 is read, though step 20 was saved later"


@pytest.mark.parametrize(
    "door, arguments, message",
    [
        ("linear_probe", (), "--checkpoint is missing"),
        ("linear_probe", ("--checkpoint=nowhere",), "nowhere holds no checkpoints"),
        ("linear_probe", ("--checkpoint=x", "--sgd_rates=fast"), '--sgd_rates has "fast"'),
        ("transfer", ("--checkpoint=nowhere", "--data_dir=x"), "nowhere holds no checkpoints"),
        ("embed", ("--checkpoint=nowhere",), "--out is missing"),
        ("search", ("--embeddings=nowhere.npz",), "nowhere.npz"),
        ("report", ("--checkpoint=nowhere",), "nowhere"),
    ],
)
def test_mistakes_end_in_one_line(door, arguments, message, tmp_path):
    ended = call(tmp_path, door, *arguments)
    (line,) = ended.err.splitlines()
    assert ended.code == 1 and line.startswith("error: ") and message in line
