"""What loggers are told of a run: all of it once, whatever happens to the run meanwhile.

A service that only writes down what it is told goes through whole runs; those that are installed
go through the same calls, offline.
"""

from __future__ import annotations

import importlib.util
import json
import re
import sqlite3
import struct
import time

import numpy as np
import pytest
from etils import epath
from frame import toys
from train import tiny

from simclr_jax import documents, extras, recipes
from simclr_jax.errors import Unreachable, UserError
from simclr_jax.frame import modules
from simclr_jax.stages import run
from simclr_jax.train import events, loggers, services
from simclr_jax.train.loggers import Loggers

STEPS = 6
FIELDS = {
    "train__steps": STEPS,
    "log__every_steps": 1,
    "checkpoint__every_steps": 2,
    "eval__every_epochs": 1.0,  # of 3 steps
    "eval__knn": True,
    "log__to": "tensorboard,wandb",
    "log__project": "tried",
}


class Recorder:
    """A service that writes down what it is told, and fails where it is told to."""

    def __init__(self, told: list, beginning: services.Beginning, fails: dict):
        self.known_as = beginning.known_as or f"run{len(told)}"
        self._told, self._fails = told, fails
        told.append(("begin", beginning, self.known_as))

    def write(self, step, values):
        self._told.append(("write", step, values))
        if step in self._fails:
            raise self._fails.pop(step)

    def picture(self, name, png):
        self._told.append(("picture", name, png))

    def table(self, name, step, header, rows):
        self._told.append(("table", name, step, header, rows))

    def close(self, status):
        self._told.append(("close", status))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Return the workdir of a run that broke twice, what it told, and how it broke."""
    root, random = tmp_path_factory.mktemp("run"), np.random.default_rng(0)
    pixels = random.integers(0, 256, (48, 10, 10, 3)).astype(np.uint8)
    arrays = {"images": pixels, "labels": np.arange(48) % 3}
    np.savez(root / "images.npz", **arrays, test_images=pixels[:9], test_labels=np.arange(9) % 3)
    data = {"data__source": "memory", "data__path": str(root / "images.npz")}
    told: list = []
    fails = {4: RuntimeError("killed"), 5: ConnectionError("no\nroute")}
    service = services.SERVICES["wandb"]._replace(
        package="json", begin=lambda beginning: Recorder(told, beginning, fails), errors=()
    )
    broke = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modules, "encoder", lambda config: toys.Small(modules.norm(config)))
        patch.setitem(services.SERVICES, "wandb", service)
        for kind in (RuntimeError, Unreachable):
            with pytest.raises(kind) as raised:
                run.run(tiny.recipe(**FIELDS, **data), str(root / "run"))
            broke.append(str(raised.value))
        assert run.run(tiny.recipe(**FIELDS, **data), str(root / "run")) == 0
    return epath.Path(root / "run"), told, broke


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def of(told, kind):
    return [content for name, *content in told if name == kind]


def test_each_line_is_told_once_though_the_run_goes_over_some_again(recorded):
    workdir, told, _ = recorded
    want = lines(workdir)
    assert len(want) > STEPS and [line["step"] for line in want].count(3) == 2
    found = of(told, "write")
    assert [step for step, _ in found] == [line["step"] for line in want]
    for (_, values), line in zip(found, want, strict=True):
        known = {n: x for n, x in line.items() if x is not None and n not in ("step", "crc32")}
        assert values.keys() == known.keys()
        for name in values.keys() - {"images_per_second", "input_wait"}:
            assert values[name] == known[name]


def test_a_run_that_goes_on_is_the_same_run_there(recorded):
    workdir, told, _ = recorded
    (first, name), *later = of(told, "begin")
    assert first.known_as is None and (first.project, first.name) == ("tried", "run")
    assert [(b.known_as, known) for b, known in later] == [(name, name)] * 2
    assert of(told, "close") == [["failed"], ["failed"], ["finished"]]
    kept = documents.read(workdir / loggers.NAME, dict)
    assert kept["wandb"] == {"known_as": name, "step": STEPS, "lines": 2}


def test_it_is_told_settings_views_and_scores_once(recorded):
    workdir, told, _ = recorded
    settings = of(told, "begin")[0][0].settings
    assert settings["train.steps"] == STEPS and settings["augment.views.first.hue"] == 0.2
    assert all(isinstance(value, bool | int | float | str) for value in settings.values())
    assert of(told, "picture") == [["views", (workdir / "views.png").read_bytes()]]
    ((name, step, header, rows),) = of(told, "table")
    scores = documents.read(workdir / "results" / "summary.json", dict)["scores"]
    assert (name, step, [row[0] for row in rows]) == ("scores", STEPS, list(scores))
    assert header[1:] == list(next(iter(scores.values())))


def test_a_service_that_does_not_answer_ends_the_run_in_one_line_to_be_tried_again(recorded):
    _, _, (_, said) = recorded
    assert Unreachable.code == 75
    assert said.startswith("log.to names wandb, which fails: no route; metrics.jsonl has all")


def test_tensorboard_has_numbers_views_settings_and_scores(recorded):
    """Read event by event; of numbers, those of lines alone are numbers of the run."""
    from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

    workdir, _, _ = recorded
    directory, found = workdir / "tensorboard", {}
    for path in sorted(directory.iterdir()):
        for event in events._events(path.read_bytes()):
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value))
    ((step, views),) = found["views"]
    assert step == 0 and views.image.encoded_image_string == (workdir / "views.png").read_bytes()
    ((step, text),) = found["scores/text_summary"]
    assert step == STEPS and b"| untrained" in text.tensor.string_val[0]
    assert text.metadata.plugin_data.plugin_name == "text"
    ((_, begun),) = found["_hparams_/session_start_info"]
    content = HParamsPluginData.FromString(begun.metadata.plugin_data.content)
    assert content.session_start_info.hparams["train.steps"].number_value == STEPS
    want = [(line["step"], np.float32(line["loss"])) for line in lines(workdir) if "loss" in line]
    every = events.read(directory)
    read = [line for line in every if "loss" in line.values]
    assert [(line.step, np.float32(line.values["loss"])) for line in read] == want
    known = {name for line in lines(workdir) for name in line}
    assert {name for line in every for name in line.values} <= known


def test_without_tensorboard_there_are_no_events(tmp_path):
    from simclr_jax.train.metrics import MetricsWriter

    told = Loggers(epath.Path(tmp_path))
    told.begin(recipes.base().to_dict() | {"log": {"to": "", "project": "x"}}, fresh=True)
    writer = MetricsWriter(epath.Path(tmp_path), 0, loggers=told)
    writer.write(1, {"loss": 2.0})
    told.table("scores", 1, ["a"], [["b"]])
    writer.close()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_what_services_were_told_may_be_damaged(tmp_path, monkeypatch):
    told, said = [], []
    service = services.SERVICES["wandb"]._replace(begin=lambda b: Recorder(told, b, {}))
    monkeypatch.setitem(services.SERVICES, "wandb", service)
    (tmp_path / loggers.NAME).write_text("{")
    record = recipes.base().to_dict() | {"log": {"to": "wandb", "project": "x"}}
    Loggers(epath.Path(tmp_path), said.append).begin(record, fresh=False)
    assert told[0][1].known_as is None
    assert len(said) == 1 and "services get a new run each" in said[0]


@pytest.mark.parametrize("name", services.SERVICES)
def test_a_package_that_is_not_there_is_said_before_the_work(name, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    install = re.escape(extras.install(services.SERVICES[name].extra))
    with pytest.raises(UserError, match=f"names {name}, but .* installed: {install}, or leave"):
        run.run(tiny.recipe(log__to=f"tensorboard,{name}"), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "to, project, words",
    [
        ("wnadb", "x", 'log.to is "wnadb" .did you mean "wandb"'),
        ("wandb,", "x", 'log.to is "": choose one of tensorboard, wandb'),
        ("wandb,wandb", "x", "names one twice"),
        ("", " ", "log.project is empty"),
    ],
)
def test_mistakes_are_one_line(to, project, words, tmp_path):
    with pytest.raises(UserError, match=words):
        run.run(tiny.recipe(log__to=to, log__project=project), str(tmp_path / "run"))


# The packages themselves, offline -----------------------------------------------------------------


def wandb_told(workdir, known_as):
    """Read its files, one for each time, which another process of it may still be writing."""
    places = sorted((workdir / "wandb").glob(f"offline-run-*-{known_as}"))
    assert len(places) == 2
    found = []
    for place in places:
        (path,) = place.glob("*.wandb")
        until = time.monotonic() + 60
        while not (read := wandb_records(path.read_bytes())) or not read[-1].HasField("exit"):
            assert time.monotonic() < until, "not ended"
            time.sleep(0.2)
        for history in (record.history for record in read if record.HasField("history")):
            values = {".".join(x.nested_key) or x.key: x.value_json for x in history.item}
            if "loss" in values:
                found.append((json.loads(values["step"]), json.loads(values["loss"])))
        axes = [record.metric for record in read if record.HasField("metric")]
        assert [axis.step_metric for axis in axes if axis.glob_name == "*"] == ["step"]
    return found


def wandb_records(content):
    """Return the Protobuf records of a file, which is LevelDB's log."""
    from wandb.proto.wandb_internal_pb2 import Record

    at, part, found = 7, b"", []
    while at + 7 <= len(content):
        _, size, kind = struct.unpack_from("<IHB", content, at)
        if at + 7 + size > len(content):
            break
        part += content[at + 7 : at + 7 + size]
        at += 7 + size
        if BLOCK - at % BLOCK < 7:  # no head fits into the rest of a block
            at += BLOCK - at % BLOCK
        if kind in (1, 4):  # whole, or its last part
            found.append(Record.FromString(part))
            part = b""
    return found


def mlflow_told(workdir, known_as):
    from mlflow import MlflowClient

    client = MlflowClient()
    data = client.get_run(known_as)
    assert data.info.status == "FINISHED" and data.data.params["train.steps"] == str(STEPS)
    assert {a.path for a in client.list_artifacts(known_as)} == {"views.png", "scores.md"}
    return [(m.step, m.value) for m in client.get_metric_history(known_as, "loss")]


def trackio_told(workdir, known_as):
    (path,) = (workdir / "trackio").glob("*.db")
    with sqlite3.connect(path) as base:
        read = base.execute("select step, metrics from metrics where run_name = ?", (known_as,))
        rows = [(step, json.loads(metrics)) for step, metrics in read]
    assert {"views", "scores"} <= {name for _, values in rows for name in values}
    return [(step, values["loss"]) for step, values in rows if "loss" in values]


OFFLINE = {
    "wandb": {"WANDB_MODE": "offline", "WANDB_SILENT": "true"},
    "mlflow": {"MLFLOW_TRACKING_URI": "file:{}/mlruns", "MLFLOW_ALLOW_FILE_STORE": "true"},
    "trackio": {"TRACKIO_DIR": "{}/trackio"},
}
READ = {"wandb": wandb_told, "mlflow": mlflow_told, "trackio": trackio_told}
BLOCK = 2**15


@pytest.mark.slow
@pytest.mark.parametrize("name", services.SERVICES)
def test_a_service_offline_has_each_step_once_in_one_run(name, tmp_path, monkeypatch):
    """A run that ends at step 3, and goes on from step 2."""
    for variable, value in OFFLINE[name].items():  # some are read when the package is imported
        monkeypatch.setenv(variable, value.format(tmp_path))
    pytest.importorskip(services.SERVICES[name].package, reason=f"pip install {name}")
    record = tiny.recipe(train__steps=STEPS, log__to=name).to_dict()
    workdir, told = epath.Path(tmp_path), []
    for fresh, steps in ((True, (1, 2, 3)), (False, (3, 4))):
        with Loggers(workdir) as opened:
            opened.begin(record, fresh)
            if fresh:
                opened.picture("views", png())
            for step in steps:
                opened.write(step, {"loss": step / 4, "bad": float("nan")}, 1)
            if not fresh:
                opened.table("scores", 4, ["of", "kNN"], [["trained", "1.0"]])
                opened.finish()
        told.append(documents.read(workdir / loggers.NAME, dict)[name]["known_as"])
    assert told[0] == told[1]
    assert READ[name](tmp_path, told[0]) == [(step, step / 4) for step in (1, 2, 3, 4)]


def png():
    from simclr_jax.stages.contact_sheet import contact_sheet

    return contact_sheet([np.zeros((4, 4, 3), np.uint8)], {})
