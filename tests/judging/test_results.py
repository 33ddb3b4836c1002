"""Results as files: what is written beside them, what is damaged, and how a page shows them."""

from __future__ import annotations

import html
import json
import re
import shutil
from importlib import metadata

import numpy as np
import pytest
from etils import epath
from reporting.test_report import TESTED, healthy, write_record, written

from simclr_jax import documents
from simclr_jax.errors import UserError
from simclr_jax.judging import results
from simclr_jax.reporting import published, record, score_sections
from simclr_jax.train import manifest

UNSEALED = ("crc32", "arrays")  # what results of earlier versions lack
SEVERAL = {  # of images that may have several of 3 labels
    "labels": np.tile(np.array([1, 0, -1], np.int8), (8, 1)),
    "scores": np.zeros((8, 3), np.float32),
    "examples": np.arange(8),
}


@pytest.mark.parametrize(
    "name", ["tfds:imagenet2012:5.1.0", "imagenet2012/5.1.0", "tfds:imagenet2012"]
)
def test_published_numbers_are_found_by_any_name_of_their_data(name):
    assert published.beside(name) == published.PUBLISHED["imagenet2012"]
    assert not published.beside(name.replace("2012", "2012_subset"))


def write_result(run, name, images="", **fields):
    test = TESTED["test"] | ({"fingerprint": images} if images else {})
    result = {"name": name, "solver": "lbfgs", "tap": "h", "data": TESTED | {"test": test}}
    result |= {"scores": {"top-1": {"value": 0.5, "low": 0.4, "high": 0.6}}, "protocol": {}}
    labels = np.arange(8) % 2
    arrays = {"labels": labels, "predictions": 0 * labels, "examples": np.arange(8)}
    results.write(run, result | fields, arrays)
    return run


def test_only_results_on_the_same_images_are_tested(tmp_path):
    runs = [write_record(tmp_path / name, healthy()) for name in ("one", "other")]
    names = [f"lbfgs-{tap}" for tap in ("z", "h", "x", "head1", "pixels", "a", "b", "c")]
    for run in runs:
        for name in names:
            write_result(run, name)
        write_result(run, "few", images=run.name)
    tested = "".join(score_sections._tests([record.read(str(run)) for run in runs]))
    # One order, whatever seed Python hashes strings with.
    assert re.findall(r"<td[^>]*>(lbfgs-\w+)</td>", tested) == sorted(names)
    assert re.findall(r"Not tested: ([^<]*)<", tested) == [
        "few, one and other: scored on different images."
    ]


def test_a_score_may_have_no_interval(tmp_path):
    run = write_record(tmp_path / "run", healthy())
    write_result(run, "kmeans-h", scores={"NMI": {"value": 0.123}, "top-1": {"value": 0.4}})
    page = written(run)
    assert re.findall(r"<td[^>]*>(12\.3|40\.0)</td>", page) == ["40.0", "12.3"]


@pytest.mark.parametrize(
    "file, content, words",
    [
        ("broken.json", b'{"name": "bro', "cannot be used (it is not JSON"),
        ("broken.json", b'{"name": "broken", "solver": "knn"}', "required field `scores`"),
        ("broken.json", b'{"name": "broken", "scores": {"top-1": 0.5}}', "Expected `object`"),
        ("broken.json", b"[1, 2]", "cannot be used (Expected `object`, got `array`"),
        ("broken.json", b'"text"', "cannot be used (Expected `object`, got `str`"),
        ("copy.json", None, 'is the result "broken" under another name'),
        ("broken.npz", b"", "is no archive to use"),
        ("broken.npz", b"PK\x03\x04 and no more", "is no archive to use"),
        ("broken.npz", b"junk", "is no archive to use"),
    ],
)
def test_a_damaged_result_is_left_out_and_the_page_says_so(tmp_path, file, content, words):
    run = write_record(tmp_path / "run", healthy())
    for name in ("broken", "whole"):
        write_result(run, name)
    directory = run / "results"
    (directory / file).write_bytes(content or (directory / "broken.json").read_bytes())
    page = written(run)
    (said,) = re.findall(r'<li class="problem">([^<]*)<', page)
    assert re.search(rf"results/{file} .*{re.escape(words)}", html.unescape(said))
    rows = re.findall(r"<td[^>]*>(whole|broken|copy)</td>", page)
    assert set(rows) == ({"whole"} if file == "broken.json" else {"whole", "broken"})


def test_damaged_arrays_are_refused_in_one_line(tmp_path):
    write_result(tmp_path, "knn-h")
    path = tmp_path / "results" / "knn-h.npz"
    whole = path.read_bytes()
    result = results.read(path.with_suffix(".json"))
    assert set(results.read_arrays(tmp_path, result)) == {"labels", "predictions", "examples"}
    for content in (b"", b"\x93NUMPY", whole[: len(whole) // 2], whole[:40] + whole[60:]):
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"{path} is no archive to use \(.+\): restore"):
            results.read_arrays(tmp_path, result)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        results.read_arrays(tmp_path, result)


def test_the_arrays_of_another_result_are_refused(tmp_path):
    for name in ("knn-h", "knn-z"):
        write_result(tmp_path, name, tap=name[-1])
    directory = tmp_path / "results"
    np.savez(directory / "knn-z.npz", labels=[0, 1], predictions=[0, 0], examples=[0, 1])
    (directory / "knn-h.npz").write_bytes((directory / "knn-z.npz").read_bytes())
    for name in ("knn-h", "knn-z"):
        result = results.read(epath.Path(directory / f"{name}.json"))
        with pytest.raises(UserError, match="not the one that was written with the result"):
            results.read_arrays(tmp_path, result)
        # A result that is older than the checksum is held to its shapes.
        del result["arrays"]
        assert results.read_arrays(tmp_path, result)["labels"].tolist() == [0, 1]


@pytest.mark.parametrize(
    "arrays, said",
    [
        ({"labels": np.zeros(4)}, r"labels is float64\[4\]"),
        ({"predictions": np.array(["0"] * 8)}, r"predictions is <U1\[8\]"),
        ({"predictions": np.zeros((2, 2, 2), int)}, r"predictions is int64\[2, 2, 2\]"),
        ({"predictions": np.full(8, -2)}, "predictions has -2"),
        ({"predictions": np.zeros(7, int)}, "different lengths"),
        ({"labels": np.int64(3)}, r"labels is int64\[\]"),
        ({"labels": np.arange(8) - 1}, "labels has -1"),
        ({"predictions": np.zeros((8, 2), int)}, r"predictions is int64\[8, 2\]"),
        ({"scores": np.zeros(8)}, r"scores is float64\[8\]"),
        ({"scores": np.zeros((8, 1))}, "labels are of 2 classes, and scores of 1"),
        (SEVERAL | {"labels": np.zeros((8, 4), np.int8)}, "of 4 classes, and scores of 3"),
        (SEVERAL | {"labels": np.full((8, 3), -2, np.int8)}, "labels has -2"),
    ],
)
def test_arrays_of_other_shapes_are_refused(tmp_path, arrays, said):
    whole = {"labels": np.arange(8) % 2, "predictions": np.zeros(8, int), "examples": np.arange(8)}
    results.write(tmp_path, {"name": "knn-h", "scores": {}}, whole | arrays)
    result = results.read(epath.Path(tmp_path / "results" / "knn-h.json"))
    with pytest.raises(UserError, match=said):
        results.read_arrays(tmp_path, result)


def test_arrays_of_several_labels_may_ignore_classes(tmp_path):
    results.write(tmp_path, {"name": "lbfgs-h", "scores": {}}, SEVERAL)
    result = results.read(epath.Path(tmp_path / "results" / "lbfgs-h.json"))
    assert results.read_arrays(tmp_path, result)["labels"].min() == -1


def test_arrays_that_fit_no_test_are_said_in_the_page(tmp_path):
    """Of a stranger: without a checksum of the arrays, and with labels of no class."""
    runs = [write_record(tmp_path / name, healthy()) for name in ("one", "other")]
    examples, score = np.arange(8), {"value": 0.5, "low": 0.4, "high": 0.6}
    for labels, classes in ((examples - 1, 7), (examples, 5), (examples * 10**12, 0)):
        outputs = {"scores": np.zeros((8, classes), np.float32)} if classes else {}
        outputs = outputs or {"predictions": examples}
        for run in runs:
            write_result(run, "knn-h", scores={"top-1": score, "mean per class": score})
            file = run / "results" / "knn-h.json"
            about = json.loads(file.read_text())
            file.write_text(json.dumps({n: about[n] for n in about if n not in UNSEALED}))
            np.savez(run / "results" / "knn-h.npz", labels=labels, examples=examples, **outputs)
        page = html.unescape(written(*runs))
        assert ("knn-h.npz cannot be used" in page) == bool(classes)
        assert ("were the runs alike" in page) == (not classes)


@pytest.mark.parametrize(
    "level", [{"of": "x"}, {"scores": {"top-1": 0.3}, "of": "x"}, {"of": "x", "scores": []}, 3]
)
def test_a_level_of_another_shape_is_a_damaged_result(tmp_path, level):
    run = write_record(tmp_path / "run", healthy())
    write_result(run, "knn-h", level=level)
    write_result(run, "whole", level={"of": "x", "scores": {"top-1": {"value": 0.25}}})
    page = written(run)
    assert "knn-h.json cannot be used" in page and ">25.0<" in page


def test_no_altered_number_of_a_result_is_shown(tmp_path):
    run = write_record(tmp_path / "run", healthy())
    write_result(run, "knn-h")
    file = run / "results" / "knn-h.json"
    file.write_text(file.read_text().replace("0.5", "0.9"))
    page = written(run)
    assert "90.0" not in page and "was altered since it was written" in page
    # An older result has no checksum.
    about = json.loads(file.read_text())
    for name in ("crc32", "arrays"):
        del about[name]
    file.write_text(json.dumps(about))
    assert "90.0 (40.0 to 60.0)" in written(run)


@pytest.mark.parametrize(
    "change",
    [
        {"value": None, "low": None, "high": None},
        {"value": 1, "low": 0, "high": 1},
        {"value": 0.5},
        {},
    ],
)
def test_scores_that_json_allows_are_shown(tmp_path, change):
    run = write_record(tmp_path / "run", healthy())
    write_result(run, "knn-h", scores={"top-1": change}, data={}, published={"SimCLR": 0.5})
    documents.write(
        run / "results" / "summary.json",
        {"scores": {name: {"kNN": change} for name in ("pretrained encoder", "raw pixels")}},
    )
    assert "knn-h" in written(run)


def test_versions_are_of_everything_that_decides_a_number(monkeypatch):
    installed = metadata.version

    def version(name):
        if name in ("simplejpeg", "tensorflow"):
            raise metadata.PackageNotFoundError(name)
        return "4.9" if name in results.OPTIONAL else installed(name)

    monkeypatch.setattr(metadata, "version", version)
    found = results.versions()
    assert found["backend"] == "cpu" and found["device"]
    assert found["pillow"] == installed("pillow")
    assert found["tensorflow-datasets"] == found["opencv-python-headless"] == "4.9"
    assert "simplejpeg" not in found and "tensorflow" not in found


def write_summary(run, checksum):
    """Write a run whose checkpoint of step 7 has one array, and what is said of it."""
    place = run / "checkpoints" / "7"
    place.mkdir(parents=True)
    manifest.write(epath.Path(place), 7, {"w": manifest.Leaf((1,), "float32", checksum)})
    about = {"step": 7, "weights": manifest.identity(epath.Path(place), 7)}
    (run / "results").mkdir()
    documents.write(run / "results" / "summary.json", {"scores": {}, "checkpoint": about})
    return run


def test_a_summary_is_that_of_the_checkpoint_beside_it(tmp_path):
    one, other = write_summary(tmp_path / "one", "00"), write_summary(tmp_path / "other", "01")
    assert results.read_summary(one)["checkpoint"]["step"] == 7
    documents.write(one / "saved.json", {"step": 9})
    with pytest.raises(UserError, match=r"it is of step 7, and step 9 was saved.: put back"):
        results.read_summary(one)
    documents.write(one / "saved.json", {"step": 7})
    shutil.copy(other / "results" / "summary.json", one / "results")
    with pytest.raises(UserError, match=r"summary.json cannot be used .it is of other weights"):
        results.read_summary(one)
    found = record.read(str(one))
    assert found.summary is None and "is of other weights" in found.damaged[0]
    shutil.rmtree(one / "checkpoints" / "7")  # then nobody knows
    assert results.read_summary(one)
    summary = {"scores": {}}  # as runs wrote it before
    documents.write(other / "results" / "summary.json", summary)
    assert results.read_summary(other) == summary
