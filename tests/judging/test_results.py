"""Results as files: what is written beside them, what is damaged, and how a page shows them."""

from __future__ import annotations

import html
import json
import re
from importlib import metadata

import numpy as np
import pytest
from etils import epath
from reporting.test_report import TESTED, healthy, write_record, written

from simclr_jax import documents
from simclr_jax.errors import UserError
from simclr_jax.judging import results
from simclr_jax.reporting import published, record, score_sections


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
    ],
)
def test_arrays_of_other_shapes_are_refused(tmp_path, arrays, said):
    whole = {"labels": np.arange(8) % 2, "predictions": np.zeros(8, int), "examples": np.arange(8)}
    results.write(tmp_path, {"name": "knn-h", "scores": {}}, whole | arrays)
    result = results.read(epath.Path(tmp_path / "results" / "knn-h.json"))
    with pytest.raises(UserError, match=said):
        results.read_arrays(tmp_path, result)


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
