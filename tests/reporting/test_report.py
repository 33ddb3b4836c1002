"""The report of runs: its numbers against other programs, its words against runs made for them."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn import decomposition, metrics
from stages.written import write_images, write_run

from simclr_jax import alive, documents, recipes
from simclr_jax.data.sources import Images
from simclr_jax.errors import UserError
from simclr_jax.judging import results
from simclr_jax.judging.feature_bank import Features
from simclr_jax.reporting import embedding_sections, findings, record, report, score_sections


def write_record(path, lines, method="simclr", **fields):
    """Write what a run of 100 steps of 64 of 640 images has said so far."""
    config = recipes.base(method)
    config.train.batch_size, config.train.steps = 64, 100
    for name, value in fields.items():
        config.update_from_flattened_dict({name.replace("__", "."): value})
    path.mkdir(exist_ok=True)
    documents.write(path / "config.json", config.to_dict() | {"images": ["640 images", "64"]})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (path / "metrics.jsonl").write_text(text)
    return path


def healthy(last=100):
    """Return the metrics of a run of which nothing is to be said."""
    lines = [{"step": 0, "effective_rank_h": 6.0, "uniformity_h": -0.7, "knn_accuracy": 0.2}]
    for step in range(5, last + 1, 5):
        loss = 4 * math.exp(-step / 15) + 5
        speed = {"epoch": step / 10, "images_per_second": 100.0}
        lines.append({"step": step, "loss": loss, "loss_mean": loss / 2, "lr": 0.1, **speed})
        if step % 20 == 0:
            found = {"effective_rank_h": 20.0, "uniformity_h": -1.5, "knn_accuracy": 0.6}
            lines.append({"step": step, **found})
    return lines


def found(path):
    return [finding.text for finding in findings.findings(record.read(str(path)))]


def changed(**last):
    lines = healthy()
    lines[-1] = lines[-1] | last
    return lines


def test_nothing_is_said_of_a_healthy_run(tmp_path):
    assert found(write_record(tmp_path / "run", healthy())) == []


FALLING = [
    {**line, "loss": 9 - line["step"] / 50} if "loss" in line else line for line in healthy()
]
SLOW = [
    {**line, "images_per_second": 20.0 if line["step"] > 75 else 100.0} if "loss" in line else line
    for line in healthy()
]
DIVERGED = [
    {**line, "loss": None} if line["step"] == 100 and "loss" in line else line for line in healthy()
]
CHANCE = [{**line, "loss": 2 * math.log(127)} if "loss" in line else line for line in healthy()]


@pytest.mark.parametrize(
    "lines, words",
    [
        (changed(effective_rank_h=1.3), "h has collapsed: .* only 1.3 dimensions"),
        (changed(effective_rank_h=4.5), "rank of h is 4.5, below the 6.0 of the untrained"),
        (changed(uniformity_h=-0.01), "All h point in nearly the same direction"),
        (changed(knn_accuracy=0.5), "kNN accuracy fell from 60.0% at step 20 to 50.0%"),
        (changed(knn_accuracy=0.65), "kNN accuracy was still rising: by 5.0 points since step 80"),
        (FALLING, "loss was still falling at the end"),
        (SLOW, "slow: 20 images/s at the end, 100 in the median"),
        (CHANCE, "loss is 9.69, that of an encoder that has learned nothing 9.69"),
        (healthy(60), "stopped at step 60 of 100"),
        (DIVERGED, "Not every value of loss is a finite number"),
    ],
)
def test_one_problem_is_named_alone(tmp_path, lines, words):
    said = found(write_record(tmp_path / "run", lines))
    assert len(said) == 1 and re.search(words, said[0])


def test_chance_counts_the_negatives_of_a_memory(tmp_path):
    """At 9.69 a run without a memory has learned nothing, one of 400 more negatives a lot."""
    assert found(write_record(tmp_path / "run", CHANCE, memory__size=400)) == []
    level = 2 * math.log(127 + 400)
    lines = [{**line, "loss": level} if "loss" in line else line for line in healthy()]
    (said,) = found(write_record(tmp_path / "memory", lines, memory__size=400))
    assert "that of an encoder that has learned nothing 12.53" in said


def test_an_encoder_no_better_than_pixels_is_named(tmp_path):
    run = write_record(tmp_path / "run", healthy())
    scores = {
        "raw pixels": {"kNN": {"accuracy": 0.5, "low": 0.45, "high": 0.55}},
        "untrained encoder": {"kNN": {"accuracy": 0.2, "low": 0.15, "high": 0.25}},
        "pretrained encoder": {"kNN": {"accuracy": 0.58, "low": 0.53, "high": 0.63}},
    }
    (run / "results").mkdir()
    documents.write(run / "results" / "summary.json", {"protocol": {}, "scores": scores})
    (said,) = found(run)
    assert "not clearly above raw pixels: kNN 58.0 % against 50.0 %" in said


def test_images_that_several_processes_could_not_read_count_once(tmp_path):
    run = write_record(tmp_path / "run", healthy())
    for process, images in enumerate([("a.png", "b.png"), ("b.png", "c.png")]):
        lines = [f'{{"image": "{image}", "reason": "?"}}\n' for image in images]
        path = run / f"unreadable_train.{process}.jsonl"
        path.write_text("".join(lines) + '{"image": "d')  # half a line: a run at work
    (said,) = found(run)
    assert said.startswith("At least 3 training image(s) could not be read")


def test_a_run_under_way_is_read_as_far_as_it_is(tmp_path):
    run = write_record(tmp_path / "run", healthy(60))
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 65, "loss": nu')
    read = record.read(str(run))
    assert (read.step, read.total_steps, read.examples) == (60, 100, 640)
    assert list(read.curves["knn_accuracy"].steps) == [0, 20, 40, 60]
    page = written(run)
    assert "Not finished, and not running: step 60 of 100." in page
    assert "There is no checkpoint yet" in page


def written(*runs, out=None):
    said = []
    report.run([str(run) for run in runs], out, said.append)
    path = said[-1].split()[-1]
    assert path == str(out or runs[0] / "report.html")
    return Path(path).read_text()


# As the doors write it: with its source, and the version that was asked for.
TESTED = {
    "name": "tfds:cifar10:3.0.2",
    "test": {"split": "test", "fingerprint": "cifar10/3.0.2 test", "images": 200},
}


def test_several_runs_stand_side_by_side(tmp_path):
    one = write_record(tmp_path / "one", healthy(), data__source="tfds", data__name="cifar10")
    other = write_record(
        tmp_path / "other",
        healthy(),
        **{"data__source": "tfds", "data__name": "cifar10", "loss__temperature": 0.5},
    )
    labels = np.arange(200) % 4
    for run, right in ((one, 0.9), (other, 0.6)):
        guesses = np.where(np.arange(200) % 10 < 10 * right, labels, (labels + 1) % 4)
        score = {"value": right, "low": right - 0.05, "high": right + 0.05}
        about = {"data": TESTED, "scores": {"top-1": score}, "protocol": {}}
        arrays = {"labels": labels, "predictions": guesses, "examples": np.arange(200)}
        results.write(run, {"name": "lbfgs-h", "solver": "lbfgs", "tap": "h", **about}, arrays)
    page = written(one, other, out=tmp_path / "both.html")
    differing = page[page.index("What differs") : page.index("What the recipe sets")]
    assert fields_of(differing) == ["loss.temperature"]
    assert "90.0 (85.0 to 95.0)" in page and "60.0 (55.0 to 65.0)" in page
    tested = page[page.index("Are the differences") :]
    assert "+30.0" in tested and re.search(r">1e-05<", tested)
    assert page.count("Published for") == page.count("Published for cifar10") == 1
    assert "94.0" in page


def fields_of(page):
    """Return the names of recipe fields of a part of a page, which may break after their dots."""
    names = re.findall(r"<code>([\w.*<>]+)</code></td>", page)
    return [name.replace("<wbr>", "") for name in names]


def test_fields_of_another_method_are_no_difference(tmp_path):
    """A jigsaw has no such field as another method's, whose value would differ."""
    own = {"jigsaw__grid": 2, "data__image_size": 64}
    runs = [
        write_record(tmp_path / "one", healthy(), method="jigsaw", **own),
        write_record(tmp_path / "two", healthy(), method="jigsaw", **own | {"jigsaw__grid": 3}),
        write_record(tmp_path / "other", healthy(), method="moco"),
    ]
    both = written(*runs[:2], out=tmp_path / "both.html")
    assert fields_of(both[both.index("What differs") : both.index("What the recipe sets")]) == [
        "jigsaw.grid"
    ]
    assert "What not all" not in both
    page = written(*runs, out=tmp_path / "three.html")
    start, alone = page.index("What differs"), page.index("What not all of them have")
    differing = fields_of(page[start:alone])
    assert {"method", "data.image_size"} <= {*differing}
    assert not any(name.startswith(("jigsaw.", "moco.")) for name in differing)
    tables = page[alone : page.index("What the recipe sets")].split("<h4>")[1:]
    first, second, last = (fields_of(table) for table in tables)
    assert "jigsaw.grid" in first and first == second
    assert "moco.queue" in last and not {*first} & {*last}


def test_what_a_method_draws_is_of_its_runs_alone(tmp_path):
    """Each run has a loss; of a jigsaw it is no error of a reconstruction."""
    names = ("jigsaw", "autoencoder", "denoising_autoencoder")
    runs = [write_record(tmp_path / name, healthy(), method=name) for name in names]
    page = written(*runs, out=tmp_path / "all.html")

    def lines(title):
        figure = re.search(rf"<figure><h3>{title}</h3>.*?</figure>", page, re.DOTALL).group()
        return [name for name in names if re.search(rf"<title>{name}\b", figure)]

    assert lines("Loss") == [*names]
    assert lines("Error of reconstruction, loss") == [*names[1:]]


def test_transfer_stands_beside_what_was_published(tmp_path):
    run = write_record(tmp_path / "run", healthy())
    about = {"metric": "top-1", "published": {"SimCLR": 0.716, "BYOL": 0.784}, "protocol": {}}
    scores = {"top-1": {"value": 0.42, "low": 0.4, "high": 0.44}}
    about |= {"name": "transfer-dtd", "solver": "lbfgs", "tap": "h", "data": {"name": "tfds:dtd"}}
    results.write(run, {**about, "scores": scores}, {"labels": [0], "predictions": [0]})
    (_, table) = score_sections._transfer([record.read(str(run))])
    assert re.findall(r"<t[hd](?: [^>]*)?>([^<]*)<", table) == [
        "data",
        "run",
        "score",
        "here",
        "SimCLR",
        "BYOL",
        "tfds:dtd",
        "run",
        "top-1",
        "42.0",
        "71.6",
        "78.4",
    ]


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda path: path / "absent", "is no directory: give the workdir"),
        (lambda path: path, "holds no run"),
        (lambda path: f"{write_record(path / 'run', healthy())}@7", "no checkpoint of step 7"),
        (
            lambda path: write_record(path / "run", ["oops"]),
            "holds no run: Line 1 of .* is left out: Expected `object`",
        ),
    ],
)
def test_what_is_no_run_is_refused_in_one_line(tmp_path, make, words):
    with pytest.raises(UserError, match=words) as error:
        report.run([str(make(tmp_path))])
    assert "\n" not in str(error.value)


def test_a_run_named_twice_is_refused(tmp_path):
    run = write_record(tmp_path / "run", healthy())
    with pytest.raises(UserError, match="twice"):
        report.run([str(run), str(run)])


def test_telling_positives_from_negatives_is_the_area_under_the_roc_curve():
    random = np.random.RandomState(0)
    positives, negatives = random.randint(3, 9, 40) / 8, random.randint(0, 7, 300) / 8
    labels = np.repeat([1, 0], [40, 300])
    expected = metrics.roc_auc_score(labels, np.concatenate([positives, negatives]))
    assert embedding_sections.separation(positives, negatives) == pytest.approx(expected)


def test_predictions_are_counted_by_label():
    random = np.random.RandomState(0)
    labels, guesses = random.randint(0, 4, (2, 300))
    judged = report._counted(labels, guesses, ["a", "b", "c", "d"], "")
    np.testing.assert_array_equal(judged.counts, metrics.confusion_matrix(labels, guesses))
    worst = judged.errors[0]
    off = judged.counts - np.diag(np.diag(judged.counts))
    i, j = "abcd".index(worst.label), "abcd".index(worst.guess)
    assert worst.count == off.max() == off[i, j]
    assert worst.share == pytest.approx(np.mean(guesses[labels == i] == j))


def test_rows_of_neighbours_are_of_many_classes():
    labels = np.array([0] * 90 + [1] * 8 + [2, 3])
    rows = report.choose_queries(labels, 100, 6)
    assert sorted(set(labels[rows])) == [0, 1, 2, 3] and len(set(rows)) == 6
    np.testing.assert_array_equal(rows, report.choose_queries(labels, 100, 6))


def test_neighbours_are_the_nearest_of_the_bank():
    random = np.random.RandomState(0)
    labels = [random.randint(0, 3, count).astype(np.int32) for count in (7, 40)]
    queries, bank = (
        Features(random.randn(len(label), 4).astype(np.float32), label, 3, np.arange(len(label)))
        for label in labels
    )
    # Every image is known by its brightness; unreadable examples are left out of features.
    pixels = [
        np.tile(np.arange(n, dtype=np.uint8)[:, None, None, None], (2, 2, 1)) for n in (7, 50)
    ]
    held, learned = (Images(p, np.zeros(len(p), np.int32), 3) for p in pixels)
    bank = dataclasses.replace(bank, examples=np.arange(10, 50))
    cosine = metrics.pairwise.cosine_similarity(queries.x, bank.x)
    rows = report._neighbours(queries, bank, held, learned, ["a", "b", "c"])
    assert len(rows) == 7
    for query, *others in rows:
        own = int(query.pixels[0, 0, 0])
        nearest = np.argsort(-cosine[own])[: report.NEAREST]
        assert [int(tile.pixels[0, 0, 0]) - 10 for tile in others] == list(nearest)
        assert [tile.similarity for tile in others] == pytest.approx(cosine[own][nearest], abs=1e-5)
        assert [tile.said for tile in others] == ["abc"[labels[1][i]] for i in nearest]
        assert [tile.agrees for tile in others] == list(labels[1][nearest] == labels[0][own])


def test_a_map_of_few_images_is_of_principal_components():
    x = np.random.RandomState(0).randn(20, 6).astype(np.float32) * [5, 3, 1, 1, 1, 1]
    rows = x / np.linalg.norm(x, axis=1, keepdims=True)
    expected = decomposition.PCA(2).fit_transform(rows)
    points, method = report.project(x)
    np.testing.assert_allclose(np.abs(points), np.abs(expected), atol=1e-5)
    assert "principal components" in method


def test_a_map_keeps_clusters_together_and_repeats_itself(monkeypatch):
    monkeypatch.setattr(report, "ITERATIONS", 250)  # enough for so few, and a second faster
    random = np.random.RandomState(0)
    labels = np.arange(60) % 3
    x = 4 * np.eye(3, 8)[labels] + 0.5 * random.randn(60, 8)
    points, method = report.project(x.astype(np.float32))
    assert "t-SNE" in method and "seed 0" in method
    assert metrics.silhouette_score(points, labels) > 0.3
    np.testing.assert_array_equal(points, report.project(x.astype(np.float32))[0])


def test_there_is_no_map_of_equal_embeddings():
    assert report.project(np.ones((30, 4), np.float32)) == (None, "")


def test_pairs_are_compared_as_in_numpy():
    random = np.random.RandomState(0)
    first = random.randn(12, 5).astype(np.float32)
    second = (first + 0.3 * random.randn(12, 5)).astype(np.float32)
    measured = report.pairs(first, second)
    cosine = metrics.pairwise.cosine_similarity(first, second)
    np.testing.assert_allclose(measured.positives, np.diag(cosine), atol=1e-5)
    assert len(measured.negatives) == 12 * 11
    assert measured.negatives.sum() == pytest.approx(cosine.sum() - np.trace(cosine), abs=1e-4)
    # On the sphere a squared distance is twice what the cosine lacks to 1.
    assert measured.indicators["alignment"] == pytest.approx(2 - 2 * np.diag(cosine).mean())


def test_views_are_of_images_drawn_from_the_whole_split(monkeypatch):
    seen = []

    def inputs(config, few, _):
        seen.append(few.labels)
        raise StopIteration

    monkeypatch.setattr(report, "Inputs", inputs)
    labels = np.repeat(np.arange(8, dtype=np.int32), 200)  # a folder: class by class
    source = Images(np.zeros((1600, 1, 1, 3), np.uint8), labels, 8)
    for _ in range(2):
        with pytest.raises(StopIteration):
            report._pairs(SimpleNamespace(config=recipes.base()), source)
    assert len(seen[0]) == 256 and np.bincount(seen[0], minlength=8).min() > 15
    np.testing.assert_array_equal(*seen)


def several_labels(count):
    random = np.random.RandomState(0)
    labels = random.randint(0, 2, (count, 4)).astype(np.int8)
    return Features(random.randn(count, 5).astype(np.float32), labels, 4, np.arange(count))


def test_several_labels_are_no_missing_labels():
    said = {}
    for several in (False, True):
        measured = dict.fromkeys(("alignment", "uniformity", "effective_rank"), 1.0)
        pairs = {"h": embedding_sections.Pairs(measured, np.linspace(0.5, 1, 5), np.arange(20), 3)}
        one = embedding_sections.Examined(
            "run@7",
            "5 images",
            pairs,
            np.eye(5, 2),
            "PCA.",
            None,
            ["a", "b"],
            [],
            None,
            several,
        )
        page = "".join(str(part) for part in embedding_sections.sections({"run": one}))
        said[several] = re.findall(r"[^.>]*(?:no colours|is none)[^.]*", page)
        assert "Two views each of 5 held-out images, drawn by seed 0" in page
    assert all("Without labels" in text for text in said[False]) and len(said[False]) == 2
    assert all("may have several labels" in text for text in said[True]) and len(said[True]) == 2


def test_a_checkpoint_is_looked_at(tmp_path, monkeypatch):
    write_images(tmp_path / "images.npz")
    source = {"data__source": "memory", "data__path": str(tmp_path / "images.npz")}
    run = write_run(tmp_path / "run", **source)
    monkeypatch.setattr(alive, "SECS", 0.002)
    report.run([str(run)], say=(said := list[str]()).append)
    at_work = " ".join(line for line in said if line.startswith("working"))
    assert "encoding 24 images" in at_work and "measuring pairs of views" in at_work
    page = written(run)
    assert "24 held-out and 48 training images" in page
    pictures = re.findall(r'<img alt="(\d)"', page)
    assert len(pictures) == report.ROWS * (1 + report.NEAREST)
    assert set(pictures[:: 1 + report.NEAREST]) == set("0123")
    counted = re.findall(r"<title>\d taken for \d: (\d+) ", page)
    assert sum(map(int, counted)) == 24
    assert "kNN on h (k = 5" in page and "Cosine similarity of z" in page
    # The same images, each now with several labels.
    write_images(tmp_path / "images.npz", several=True)
    monkeypatch.setattr(report, "_pairs", lambda *_: {})
    monkeypatch.setattr(report, "extract", lambda *_: {"h": several_labels(24)})
    page = written(run)
    assert page.count("for an image may have several labels") == 2 and "Without labels" not in page
    # Where its images have gone, the rest is still there.
    (tmp_path / "images.npz").unlink()
    assert "does not exist" in written(run)
