"""A pipeline: its order, what it skips, how it goes on after a stop, the numbers of its table."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal

import logged
import numpy as np
import pytest
from pipeline.short import ORDER, result, runs_of
from stages import noisy
from train import tiny

from simclr_jax import documents
from simclr_jax.errors import UserError
from simclr_jax.pipeline import recipe
from simclr_jax.pipeline import run as pipeline
from simclr_jax.pipeline import table as pipeline_table
from simclr_jax.pipeline.place import Place
from simclr_jax.pipeline.table import Cost, Entry
from simclr_jax.segments import Extension
from simclr_jax.stages import extend
from simclr_jax.train import progress, saved
from simclr_jax.train.metrics import MetricsWriter


def content(workdir):
    """Return what must not depend on stops: weights, metrics, scores."""
    found = {}
    for name in ORDER:
        leaves = saved.read(str(workdir / name)).leaves
        found |= {f"{name}/{leaf}": value.tobytes() for leaf, value in leaves.items()}
        found[name] = logged.lines(workdir / name)
        summary = json.loads((workdir / name / "results" / "summary.json").read_text())
        found[f"{name}/scores"] = summary["scores"]
    found["cells"] = [row["cells"] for row in result(workdir)["rows"]]
    return found


@pytest.mark.slow
def test_stopped_in_each_stage_it_ends_as_if_never_stopped(piped, images, tmp_path, monkeypatch):
    workdir, write, struck = tmp_path / "pipeline", MetricsWriter.write, {"first"}

    def strike(writer, step, values):
        run = writer._path.parent.name
        if step == 2 and "loss" in values and run not in struck:
            struck.add(run)
            os.kill(os.getpid(), signal.SIGTERM)
        write(writer, step, values)

    monkeypatch.setattr(MetricsWriter, "write", strike)
    for run in ORDER[1:]:
        assert pipeline.run(runs_of(images), str(workdir)) == 75
        assert run in struck and not (workdir / "results" / "pipeline.json").exists()
        assert (workdir / run / "checkpoints").exists()
        assert not (workdir / run / "results" / "summary.json").exists()
    assert pipeline.run(runs_of(images), str(workdir)) == 0
    assert content(workdir) == content(piped)
    assert "done      second  run 2 of 3" in (workdir / "log.txt").read_text()


def test_when_all_is_there_the_table_alone_is_made_again(piped, images, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline.runs, "run", lambda *_: pytest.fail("a run was made again"))
    monkeypatch.setattr(pipeline.linear_probe, "run", lambda *_: pytest.fail("a probe was"))
    moved = shutil.copytree(piped, tmp_path / "moved")
    before = result(piped)
    (moved / "results" / "pipeline.json").unlink()
    assert pipeline.run(runs_of(images), str(moved), "must") == 0
    assert result(moved) == before
    with pytest.raises(UserError, match="holds runs already, such as first"):
        pipeline.run(runs_of(images), str(moved), "never")


def test_the_table_holds_what_the_runs_have_written(piped):
    """Read apart from the code that wrote it: accuracies are those of the last evaluation."""
    accuracy, speeds, sizes = {}, {}, {}
    for name in ORDER:
        lines = [json.loads(s) for s in (piped / name / "metrics.jsonl").read_text().splitlines()]
        accuracy[name] = [line["accuracy"] for line in lines if "accuracy" in line][-1]
        logged = [line["images_per_second"] for line in lines if "images_per_second" in line]
        speeds[name] = np.median(logged[1:])
        leaves = saved.read(str(piped / name)).leaves
        sizes[name] = sum(x.size for leaf, x in leaves.items() if "params/encoder" in leaf)
    (found,) = (piped / "first" / "results").glob("seen-*.npz")
    with np.load(found) as arrays:
        accuracy["seen"] = np.mean(arrays["labels"] == arrays["predictions"])
    rows = {row["row"]: row for row in result(piped)["rows"]}
    tuned = [accuracy["first"], accuracy["second"]]
    assert rows["tuned"]["cells"]["50%"]["mean"] == pytest.approx(np.mean(tuned))
    assert rows["tuned"]["cells"]["50%"]["std"] == pytest.approx(np.std(tuned, ddof=1))
    for row, name in (("distilled", "student"), ("probe", "seen")):
        (entry,) = rows[row]["cells"]["50%"]["entries"]
        assert entry["accuracy"] == pytest.approx(accuracy[name]) and entry["draw"] == 1
    assert rows["tuned"]["parameters"] == [sizes["first"]]
    assert rows["distilled"]["images_per_second"] == pytest.approx(speeds["student"])
    first, second = result(piped)["differences"]
    same_draw = accuracy["second"] - accuracy["student"]  # whose teacher has draw 1
    assert (first["cells"]["50%"]["mean"], first["cells"]["50%"]["n"]) == (
        pytest.approx(same_draw),
        1,
    )
    assert second["cells"]["50%"]["mean"] == pytest.approx(accuracy["student"] - accuracy["seen"])
    assert result(piped)["runs"] == 3 and not result(piped)["other runs"]


def test_accuracies_are_those_of_the_last_weights_on_the_held_out_images(piped, images):
    """Computed again from checkpoints and images, without the package's evaluation."""
    with np.load(images) as arrays:
        shown = [noisy.evaluation_view(image, 8) for image in arrays["test_images"]]
        learned = [noisy.evaluation_view(image, 8) for image in arrays["train_images"]]
        truth, labels = arrays["test_labels"], arrays["train_labels"]
    shown, learned = np.float32(shown), np.float32(learned)
    found = {e["name"]: e["accuracy"] for r in result(piped)["rows"] for e in entries(r)}
    best = {}
    for name in ORDER:
        run = saved.read(str(piped / name))
        parts = {part: run.variables(part) for part in ("encoder", "head", "classifier")}
        kinds = ("params", "batch_stats")
        variables = {kind: {part: v[kind] for part, v in parts.items()} for kind in kinds}
        logits = noisy.outputs(run.config, variables, shown, "classifier")
        assert found[name] == pytest.approx(noisy.top(logits, truth)), name
        summary = json.loads((piped / name / "results" / "summary.json").read_text())
        assert summary["protocol"]["step"] == run.step == 4
        lines = [json.loads(s) for s in (piped / name / "metrics.jsonl").read_text().splitlines()]
        best[name] = max(line["accuracy"] for line in lines if "accuracy" in line)
        if name == "first":
            bank, queries = (noisy.features(run.config, variables, x)[0] for x in (learned, shown))
    assert best != {name: found[name] for name in ORDER}  # some run was better before its end
    # A quarter of each class, of draw 1.
    rows = noisy.few(labels, 3, seed=1)
    guess = noisy.probed(bank[rows], labels[rows], queries, np.logspace(-6, 5, 45)[12:], seed=1)
    assert found["seen"] == pytest.approx(np.mean(guess == truth))


def entries(row):
    return [entry for cell in row["cells"].values() for entry in cell["entries"]]


def test_runs_are_what_the_door_makes_and_take_what_they_leave_open(piped):
    student = json.loads((piped / "student" / "config.json").read_text())
    assert student["model"]["width"] == 1 / 16 and student["head"]["dim"] == 5
    assert student["distill"]["teacher"].rpartition("@")[0] == str(piped / "second")
    assert not list(piped.rglob("lock.json"))


def test_another_recipe_is_refused_by_name_and_nothing_is_touched(piped, images):
    before = {path: path.stat().st_mtime_ns for path in piped.rglob("*") if path.is_file()}
    c = runs_of(images)
    c.runs.first.optim.base_lr = 0.7
    with pytest.raises(UserError, match=r"runs.first: .*another recipe.*base_lr: 0.3 -> 0.7"):
        pipeline.run(c, str(piped))
    with pytest.raises(UserError, match=r"runs.first: .*another recipe.*seed: 0 -> 3"):
        c = runs_of(images)
        c.seed = 3
        pipeline.run(c, str(piped))
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_a_run_whose_origin_is_gone_is_refused(piped, images, tmp_path):
    workdir = shutil.copytree(piped, tmp_path / "pipeline")
    shutil.rmtree(workdir / "first")
    with pytest.raises(UserError, match=r"second was made with .*first, which is not there"):
        pipeline.run(runs_of(images), str(workdir))


def test_a_run_is_not_extended_while_a_table_is_made_of_it(piped, images, tmp_path):
    """Nor is a table made of one that was: neither would say what it holds."""
    workdir = shutil.copytree(piped, tmp_path / "pipeline")
    run, before = workdir / ORDER[0], result(workdir)
    longer, config = Extension("9000steps"), extend.recipe_of(str(workdir / ORDER[0]))
    with pytest.raises(UserError, match=f"{run} is a run of the pipeline in {workdir}, whose"):
        pipeline.runs.run(config, str(run), extension=longer)
    record = documents.read(run / "config.json", dict)
    (step,) = (int(path.name) for path in (run / "checkpoints").iterdir())
    added = {"first_step": step, "total_steps": 9000, "warmup_steps": 0, "peak_rate": 0.1}
    documents.write(run / "config.json", record | {"segments": [added]})
    with pytest.raises(UserError, match=f"{ORDER[0]} was extended at step {step} since this"):
        pipeline.run(runs_of(images), str(workdir))
    assert result(workdir) == before


def rename_probe(c, **fields):
    c.probes.seen.update(fields)


def table(*entries):
    return lambda c: setattr(c, "table", (*c.table, *entries))


def pretrained(c, probe=True):
    """Put a pretraining run before all others."""
    with c.unlocked():
        c.runs.plain = tiny.recipe(eval__probe=probe, data__source="digits", data__name="placed")
    c.order = ("plain", *c.order)


def taught_by_pretraining(c):
    pretrained(c, probe=False)
    c.runs.student.distill.teacher = "plain"


def put(group, field, value):
    """Set a field to a value of any type, as a recipe may."""
    with group.unlocked():
        del group[field]
        group[field] = value


def several(c):
    pretrained(c, probe=False)
    c.runs.plain.data.name, c.runs.plain.eval.knn = "several", False
    rename_probe(c, run="plain")


BAD = {
    "a run that comes later": (
        lambda c: setattr(c, "order", ("second", "first", "student")),
        "runs.second.init.run is first, which does not come before",
    ),
    "itself as teacher": (
        lambda c: setattr(c.runs.student.distill, "teacher", "student"),
        "runs.student.distill.teacher is student, which does not come before",
    ),
    "a misspelt run": (
        lambda c: setattr(c.runs.second.init, "run", "frist"),
        r'runs.second: init.run is "frist" .did you mean "first"',
    ),
    "a run left out": (lambda c: setattr(c, "order", ORDER[:2]), "order has student 0 times"),
    "an order of what is not there": (
        lambda c: setattr(c, "order", (*ORDER, "third")),
        'order names a run that is "third"',
    ),
    "a bad field of a run": (
        lambda c: setattr(c.runs.student.optim, "base_lr", -1.0),
        "runs.student: optim.base_lr is -1.0",
    ),
    "a remedy of the run it is for": (
        lambda c: setattr(c.runs.first.train, "batch_size", 20),
        r"runs.first: .*--config.runs.first.train.batch_size=16",
    ),
    "labels beside those of the run it starts from": (
        lambda c: setattr(c.runs.second.labels, "use", "50%"),
        "runs.second: labels.use=50% with labels.seed=1 has 10 label.s. that are not among the 24",
    ),
    "labels beside those of its teacher": (
        lambda c: c.runs.student.update_from_flattened_dict(
            {
                "distill.teacher": "first",
                "distill.alpha": 0.5,
                "labels.use": "25%",
                "labels.seed": 1,
            }
        ),
        r"runs.student: labels.use=25% .* of .*first, .* --config.runs.student.labels.seed=0",
    ),
    "a batch larger than the images": (
        lambda c: c.runs.second.update_from_flattened_dict(
            {"labels.use": "2", "init.parts": "none"}
        ),
        "runs.second: train.batch_size is 16, more than the 8 images",
    ),
    "more labels than there are": (
        lambda c: setattr(c.runs.second.labels, "use", "40"),
        "runs.second: class 0 has 12 examples",
    ),
    "another model than that it starts from": (
        lambda c: setattr(c.runs.second.model, "width", 0.25),
        "runs.second: model.width: 0.0625 -> 0.25 from init.run=first",
    ),
    "a teacher without a classifier": (
        taught_by_pretraining,
        "runs.student: distill.teacher is plain, which has no classifier",
    ),
    "a probe of no run": (lambda c: rename_probe(c, run="tuned"), 'seen.run is "tuned"'),
    "a probe of no tap": (lambda c: rename_probe(c, tap="head7"), 'seen.tap is "head7"'),
    "a probe of a share in words": (
        lambda c: rename_probe(c, labels="1 per cent"),
        "runs.first: probes.seen: --labels=1 per cent is neither all, a share such as",
    ),
    "a probe of more labels than there are": (
        lambda c: rename_probe(c, labels="5000"),
        "runs.first: probes.seen: class 0 has 12 examples but 5000 per class",
    ),
    "a probe of a number": (
        lambda c: put(c.probes.seen, "labels", 10),
        "probes.seen.labels is 10: it must be text",
    ),
    "a draw in words": (
        lambda c: put(c.probes.seen, "seed", "one"),
        "probes.seen.seed is one: it must be a whole number",
    ),
    "a probe of images with several labels": (
        several,
        "runs.plain: an image may have several labels here, probes.seen needs one each",
    ),
    "a table of no run": (table(("a", "b", "tuned")), 'column "b": the run or probe is "tuned"'),
    "a table of pretraining": (
        lambda c: (pretrained(c), table(("a", "b", "plain"))(c)),
        "plain has stage pretrain and so no accuracy: name a probe of it",
    ),
    "a draw twice": (
        table(("tuned", "50%", "seen")),
        "second and seen both have draw 1",
    ),
    "a difference of no row": (
        lambda c: setattr(c, "differences", (("tuned", "probed"),)),
        'differences: the row is "probed"',
    ),
}


@pytest.mark.parametrize("change, words", BAD.values(), ids=BAD)
def test_bad_recipes_are_refused_before_anything_starts(images, tmp_path, change, words):
    c = runs_of(images)
    change(c)
    with pytest.raises(UserError, match=words) as raised:
        pipeline.run(c, str(tmp_path / "pipeline"))
    assert "\n" not in str(raised.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("stored", [True, False])
def test_a_probe_needs_labels_that_pretraining_does_not_read(images, tmp_path, stored):
    """A run that is told to read none may be probed; where there are none, it may not."""
    place, archive = tmp_path / "pipeline", tmp_path / "images.npz"
    arrays = dict(np.load(images))
    np.savez(archive, **{name: a for name, a in arrays.items() if stored or "labels" not in name})
    c = runs_of(images)
    pretrained(c, probe=False)
    c.runs.plain.update_from_flattened_dict(
        {"data.source": "memory", "data.path": str(archive), "data.labels": False}
        | {"data.name": "", "eval.knn": False}
    )
    rename_probe(c, run="plain")
    settle = Place(c, str(place)).settler("")
    if stored:
        assert not pipeline.settle(c, 1, settle)["plain"].data.labels
        return
    with pytest.raises(UserError, match=r"runs.plain: the images have no labels, which probes.se"):
        pipeline.settle(c, 1, settle)


def test_fields_of_pretraining_and_of_the_first_draw_are_followed():
    student, teacher = tiny.recipe(), tiny.recipe(model__width=1 / 8)
    fields = {k: {} for k in ("finetune", "scratch", "distill", "distill_labelled")}
    fields["finetune"] = {"train.batch_size": {"1%": 8, "10%": 24}}
    c = recipe.simclr_v2(teacher, student, fields=fields, draws=2)
    c.seed, c.runs.pretrain.model.width, c.runs.pretrain.data.path = 5, 0.25, "here"
    c.runs.tap1_10pct_0.optim.base_lr = 0.125
    pipeline.validate(c, 8)
    assert {run.seed for run in c.runs.values()} == {5}
    assert {run.data.path for run in c.runs.values()} == {"here"}
    assert c.runs.distilled_1pct_1.model.width == c.runs.scratch_10pct_0.model.width == 0.25
    assert c.runs.teacher_1pct_1.model.width == 1 / 8
    assert [c.runs[f"tap1_{s}_1"].train.batch_size for s in ("1pct", "10pct")] == [8, 24]
    assert c.runs.tap1_10pct_1.optim.base_lr == 0.125 != c.runs.tap1_1pct_1.optim.base_lr
    for name, draws in (("tap1", 1), ("both", 1), ("distilled", 1), ("probe", 1), ("teacher", 1)):
        assert recipe.draw(c, f"{name}_10pct_1") == draws
    views = [c.runs[f"{kind}_1pct_0"].augment.views.first for kind in ("coloured", "scratch")]
    assert views[0] == c.runs.pretrain.augment.views.first and views[1].jitter == 0
    assert views[0].area_min == views[1].area_min


def test_spread_and_paired_differences_by_hand():
    cost = Cost(parameters=1000, images_per_second=50.0, minutes=2.0)
    accuracies = {"a": (0.5, 0.6, 0.7), "b": (0.4, 0.52, 0.58), "c": (0.7, 0.6, 0.5)}
    entries = [
        Entry(row, "1%", f"{row}{draw}", draw, accuracy, cost)
        for row, values in accuracies.items()
        for draw, accuracy in enumerate(values)
    ]
    pairs = [("a", "b"), ("a", "c")]
    summary = pipeline_table.summarise(entries, pairs, {"pretrain": cost})
    # a - b is .1, .08, .12: mean .1, standard error .02 / sqrt(3) = .0115. a - c is -.2, 0, .2.
    separable, not_separable = (d["cells"]["1%"] for d in summary["differences"])
    assert separable == {
        "mean": pytest.approx(0.1),
        "std": pytest.approx(0.02),
        "n": 3,
        "separable": True,
    }
    assert not_separable["separable"] is False
    assert not_separable["std"] == pytest.approx(0.2)
    text = "\n".join(pipeline_table.lines(summary))
    assert re.search(r"a +60.0 ± 10.0 \(3\) +1,000 +50 +2.0", text)
    assert re.search(r"a - b +\+10.0 ± 2.0\n", text) and re.search(r"a - c +.0.0 ± 20.0 ns\n", text)
    assert "all 10 runs: 20.0 minutes" in text and "with 3 draws the spread" in text


def test_minutes_are_those_of_all_sessions_without_the_time_between():
    log = [
        "2026-11-22 23:59:00  run       runs/a",
        "2026-11-23 00:01:00  stopped at step 5",
        "2026-11-23 09:00:00  run       runs/a",
        "2026-11-23 09:00:30  done",
    ]
    assert progress.minutes_of(log) == 2.5
