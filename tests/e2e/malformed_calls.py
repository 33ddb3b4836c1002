"""Every way to call a door wrongly that we know of: what is given, and what must be named."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

TINY = str(Path(__file__).with_name("tiny.py"))
LONG = "x" * 300
BYTES = "wh\udcffat"  # a byte that is no UTF-8, as Python reads it from the command line
RECIPE = {"config": TINY, "config.data.path": "images.npz"}

# What is right, by door: each call below has one thing more, or one instead.
RIGHT: Mapping[str, Mapping[str, str]] = {
    "main": {**RECIPE, "workdir": "new"},
    "linear_probe": {"checkpoint": "run", "solver": "knn"},
    "transfer": {"checkpoint": "run", "data": "images.npz"},
    "embed": {"checkpoint": "run", "out": "e.npz"},
    "search": {"embeddings": "all.npz", "query": "one.png", "out": "sheet.html"},
    "report": {"checkpoint": "run", "out": "page.html"},
    "convert": {"source": "weights.safetensors", "workdir": "new"},
    "export": {"checkpoint": "run", "format": "numpy", "out": "x.npz"},
    "plan": {**RECIPE, "device": "h100"},
    "pack": {**RECIPE, "out": "packed"},
    "doctor": {"data": "images.npz", "workdir": "runs"},
    "list_recipes": {},
    "list_fields": {},
}
REQUIRED = {
    "main": ("config",),
    "linear_probe": ("checkpoint",),
    "transfer": ("checkpoint",),
    "embed": ("checkpoint", "out"),
    "search": ("embeddings",),
    "report": ("checkpoint",),
    "convert": ("source", "workdir"),
    "export": ("checkpoint", "format", "out"),
    "plan": ("config",),
    "pack": ("config", "out"),
}
# Flags by what is done with the path.
READ = {
    "main": ("data", "config.data.path", "config.init.run"),
    "linear_probe": ("checkpoint", "data", "labels"),
    "transfer": ("checkpoint", "data"),
    "embed": ("checkpoint", "data"),
    "search": ("embeddings", "query", "images"),
    "report": ("checkpoint",),
    "convert": ("source",),
    "export": ("checkpoint",),
    "plan": ("config.data.path",),
    "pack": ("config.data.path", "verify"),
    "doctor": ("data",),
}
WRITTEN = {
    "main": ("workdir",),
    "linear_probe": ("cache",),
    "transfer": ("cache",),
    "embed": ("out", "cache"),
    "search": ("out",),
    "report": ("out",),
    "convert": ("workdir",),
    "export": ("out",),
    "plan": ("json",),
    "pack": ("out",),
    "doctor": ("workdir",),
}
UNREAD = ("nowhere", "text.txt", "empty", "~nobodyatall/x", LONG, "text.txt/below", BYTES)
UNREAD += ("pipe", "loop", "ftp://host/x", "run/config.json")
UNWRITABLE = ("text.txt/below", LONG, "~nobodyatall/x", "ftp://host/x", "loop/x")
DAMAGED = ("no_checkpoint", "torn_manifests", "run@999", "run@x", "run@-1", "run,run")
NUMBERS = {
    "main": ("processes", "process", "heartbeat_secs"),
    "linear_probe": ("sgd_epochs", "sgd_batch_size", "seed", "max_bad_fraction"),
    "transfer": ("seed", "max_bad_fraction"),
    "search": ("k", "duplicates", "seed"),
    "convert": ("image_size", "tap"),
    "plan": ("devices", "images", "classes"),
    "pack": ("side", "quality", "workers"),
    "doctor": ("secs", "processes"),
}
PLACES = ("localhost:99999999", "localhost:0", ":1", "localhost", "localhost:x", "a b:1")
NO_NUMBERS = ("nan", "-1", "1e400", "x", "9" * 5000)
# Further ones: what is given, and which words must be in the line.
MORE: Mapping[str, tuple[tuple[Mapping[str, str], tuple[str, ...]], ...]] = {
    "main": (
        ({"resume": "maybe"}, ("resume", "maybe")),
        ({"resume": "must"}, ("new",)),
        ({"profile_steps": "bad"}, ("profile_steps", "bad")),
        ({"profile_steps": "3:2"}, ("profile_steps",)),
        ({"profile_steps": "1000:2000"}, ("profile_steps",)),
        ({"coordinator": "localhost:1"}, ("coordinator", "distributed")),
        *(
            (
                {"distributed": "true", "coordinator": c, "processes": "1", "process": "0"},
                ("coordinator",),
            )
            for c in (
                "localhost:99999999",
                "localhost:0",
                ":1",
                "localhost",
                "localhost:x",
                "a b:1",
            )
        ),
        (
            {"distributed": "true", "coordinator": "localhost:1", "processes": "2", "process": "2"},
            ("process",),
        ),
        ({"distributed": "true", "processes": "2"}, ("coordinator",)),
        ({"distributed": "true"}, ("coordinator",)),
        ({"config": "nowhere.py"}, ("nowhere.py",)),
        ({"config": "text.txt"}, ("text.txt",)),
        ({"config": "photos"}, ("photos",)),
        ({"config": "broken.py"}, ("broken.py",)),
        ({"config": "no_function.py"}, ("no_function.py",)),
        ({"config": "other_value.py"}, ("get_config",)),
        ({"config": f"{TINY}:argument"}, ("tiny.py",)),
        ({"config": "cifar10:nothing=1"}, ("nothing",)),
        ({"config": ""}, ("config",)),
        ({"data": "photos", "config.data.path": "images.npz"}, ("--data", "data.path")),
        ({"data": "tfds:nothing"}, ("nothing",)),
        ({"data": "classes:text.txt"}, ("text.txt",)),
        ({"data": "digits:nothing"}, ("nothing",)),
        ({"debug": "perhaps"}, ("debug",)),
    ),
    "linear_probe": (
        ({"solver": "nothing"}, ("solver", "nothing")),
        ({"solver": "knn,nothing"}, ("solver", "nothing")),
        ({"tap": "head9"}, ("tap", "head9")),
        ({"tap": "h,"}, ("tap",)),
        ({"solver": "classifier", "tap": "group1"}, ("classifier",)),
        ({"labels": "200%"}, ("labels",)),
        ({"labels": "0%"}, ("labels",)),
        ({"labels": "-3"}, ("labels",)),
        ({"labels": "nan%"}, ("labels",)),
        ({"knn": "0:0.1"}, ("knn",)),
        ({"knn": "5:x"}, ("knn",)),
        ({"knn": "5:-1"}, ("knn",)),
        ({"solver": "sgd", "sgd_rates": "-1"}, ("sgd_rates",)),
        ({"solver": "sgd", "sgd_rates": "0"}, ("sgd_rates",)),
        ({"solver": "sgd", "sgd_rates": "a,b"}, ("sgd_rates",)),
        ({"split": "nope"}, ("split", "nope")),
        ({"eval_split": "nope"}, ("eval_split", "nope")),
        ({"validation_split": "nope"}, ("validation_split", "nope")),
        ({"name": "a/b"}, ("name",)),
        ({"name": "../x"}, ("name",)),
        ({"data_dir": "photos"}, ("data_dir",)),
        ({"data": "unlabelled.npz"}, ("labels",)),
        ({"data": "photos,photos"}, ("photos",)),
    ),
    "transfer": (
        ({"sets": "nothing"}, ("sets", "nothing")),
        ({"sets": "cifar10,"}, ("sets",)),
        ({"checkpoint": "run,run"}, ("run,run",)),
        ({"data": "unlabelled.npz"}, ("labels",)),
        ({"data": "images.npz,nowhere"}, ("nowhere",)),
    ),
    "embed": (
        ({"out": "x.jpg"}, ("out", "x.jpg")),
        ({"out": "photos"}, ("photos",)),
        ({"out": "folder.npz"}, ("folder.npz",)),
        ({"out": ".npz"}, ("out",)),
        ({"tap": "head9"}, ("tap", "head9")),
        ({"tap": "h,z"}, ("tap", "h,z")),
        ({"split": "nope"}, ("split", "nope")),
        ({"data_dir": "photos"}, ("data_dir",)),
        ({"cache": "text.txt"}, ("cache",)),
    ),
    "search": (
        ({"query": "text.txt"}, ("text.txt",)),
        ({"query": "one.png,nowhere.jpg"}, ("nowhere.jpg",)),
        ({"query": ","}, ("query",)),
        ({"query": "photos"}, ("photos",)),
        ({"k": "99999999"}, ("k",)),
        ({"duplicates": "2"}, ("duplicates",)),
        ({"duplicates": "0"}, ("duplicates",)),
        ({"out": "x.jpg"}, ("out", "x.jpg")),
        ({"out": "folder.html"}, ("folder.html",)),
        ({"checkpoint": "nowhere"}, ("nowhere",)),
        ({"checkpoint": "run@999"}, ("999",)),
        ({"embeddings": "images.npz"}, ("images.npz",)),
        ({"embeddings": "torn.npz"}, ("torn.npz",)),
    ),
    "report": (
        ({"out": "photos"}, ("photos",)),
        ({"out": "nowhere/page.html"}, ("nowhere",)),
        ({"checkpoint": "run,nowhere"}, ("nowhere",)),
    ),
    "convert": (
        ({"input": "nothing"}, ("input",)),
        ({"source": "one.png"}, ("one.png",)),
        ({"source": "torn.pth"}, ()),  # torch may be missing
        ({"source": "torn.safetensors"}, ("torn.safetensors",)),
        ({"workdir": "run"}, ("run",)),
    ),
    "export": (
        ({"format": "nothing"}, ("format", "nothing")),
        ({"tap": "head9"}, ("tap", "head9")),
        ({"tap": "h,"}, ("tap",)),
        ({"weights": "average"}, ("weights", "average")),
        ({"weights": "nothing"}, ("weights", "nothing")),
        ({"format": "stablehlo", "out": "x", "preprocess": "0x0"}, ("preprocess",)),
        ({"format": "stablehlo", "out": "x", "preprocess": "axb"}, ("preprocess",)),
        ({"format": "stablehlo", "out": "x", "preprocess": "10"}, ("preprocess",)),
        ({"preprocess": "10x10"}, ("preprocess",)),
        ({"loads_in": "keras"}, ("loads_in",)),
        ({"loads_in": "timm"}, ("loads_in",)),
        ({"out": "photos"}, ("photos",)),
        ({"out": "text.txt"}, ("text.txt",)),
    ),
    "plan": (
        ({"device": "nothing"}, ("device", "nothing")),
        ({"device_memory": "-1GB"}, ("device_memory",)),
        ({"device_memory": "much"}, ("device_memory",)),
        ({"classes": "3"}, ("classes", "images")),
        ({"json": "photos"}, ("photos",)),
        ({"json": "nowhere/x.json"}, ("json", "nowhere")),
        ({"compile": "true"}, ("compile",)),
        ({"devices": "7"}, ("7",)),
        ({"config": "nowhere.py"}, ("nowhere.py",)),
    ),
    "pack": (
        ({"format": "png"}, ("format",)),
        ({"quality": "5"}, ("quality",)),
        ({"splits": "nope"}, ("nope",)),
        ({"verify": "photos", "out": "x"}, ("verify",)),
        ({"out": "photos"}, ("photos",)),
        ({"out": "text.txt"}, ("text.txt",)),
        ({"config": "nowhere.py"}, ("nowhere.py",)),
    ),
    "doctor": (
        ({"config": "v2_pipeline_digits"}, ("several",)),
        ({"config": "nowhere.py"}, ("nowhere.py",)),
        ({"workdir": "text.txt"}, ("text.txt",)),
        ({"coordinator": "localhost:1"}, ("coordinator",)),
        ({"config": TINY, "data": "photos", "config.data.path": "x"}, ("--data", "data.path")),
    ),
    "list_recipes": (),
    "list_fields": (
        ({"prefix": "nothing"}, ("prefix", "nothing")),
        ({"changed": "true"}, ("changed",)),
        ({"config": "nowhere.py"}, ("nowhere.py",)),
        ({"config": "digits", "config.train.batchsize": "8"}, ("batchsize",)),
    ),
}
# Fields of recipes: what they may not be.
FIELDS = (
    *(("train.batch_size", v) for v in ("x", "1.5", "0", "-3", "1", "100000", "")),
    *(("train.steps", v) for v in ("0", "-1", "x")),
    *(("train.epochs", v) for v in ("nan", "inf", "-1.0")),
    *(("optim.base_lr", v) for v in ("-1.0", "nan", "fast")),
    *(("optim.name", v) for v in ("adagrad", "", "lars,sgd")),
    *(("optim.warmup_epochs", v) for v in ("-1.0", "99.0")),
    *(("loss.temperature", v) for v in ("0.0", "-0.1", "1e-9", "inf")),
    *(("model.depth", v) for v in ("17", "0", "-18")),
    *(("model.width", v) for v in ("0.0", "-1.0", "nan", "1e9")),
    *(("model.stem", v) for v in ("nothing", "")),
    *(("head.layers", v) for v in ("-1", "x")),
    *(("head.dim", v) for v in ("0", "-8")),
    *(("data.image_size", v) for v in ("0", "-8", "x")),
    *(("data.holdout_fraction", v) for v in ("0.0", "2.0", "-0.5")),
    *(("data.source", v) for v in ("nothing", "")),
    *(("data.threads", v) for v in ("0", "-1")),
    *(("data.white_level", v) for v in ("banana", "-1", "nan")),
    *(("data.max_megapixels", v) for v in ("-1.0", "0.0", "nan")),
    *(("data.split", v) for v in ("nope", "test")),
    *(("data.eval_split", v) for v in ("train",)),
    *(("augment.placement", v) for v in ("gpu", "split")),
    *(("augment.views.first.blur", v) for v in ("2.0", "-1.0")),
    *(("augment.views.first.area_min", v) for v in ("0.0", "3.0")),
    *(("train.dtype", v) for v in ("int8", "float16", "")),
    *(("checkpoint.keep", v) for v in ("0", "-1")),
    *(("checkpoint.every_steps", v) for v in ("0", "-1")),
    *(("log.every_steps", v) for v in ("0", "-1")),
    *(("log.to", v) for v in ("nowhere", "tensorboard,nowhere")),
    *(("eval.knn_k", v) for v in ("0", "-2")),
    *(("eval.probe", v) for v in ("maybe", "2")),
    *(("seed", v) for v in ("-1", "x", "1.5")),
    *(("stage", v) for v in ("train", "")),
    *(("method", v) for v in ("nothing", "")),
    ("init.parts", "encoder"),
    ("init.parts", "nothing"),
    ("memory.momentum", "0.9"),
    ("optim.nesterov", "False"),
    ("optim.drop_factor", "0.5"),
    ("data.stream_block", "7"),
    ("bn.groups", "5"),
    ("bn.groups", "-1"),
    ("train.accumulate", "3"),
    ("train.accumulate", "0"),
    ("train.remat", "all"),
    ("train.steps_per_call", "0"),
    ("train.steps_per_call", "4"),
    ("finetune.from", "x"),
    ("finetune.layer", "1"),
    ("distill.teacher", "run"),
    ("distill.temperature", "2.0"),
    ("labels.fraction", "0.5"),
    ("train.batchsize", "8"),
    ("nothing.at_all", "1"),
    ("data", "x"),
    ("byol.momentum", "0.9"),
)
WITH_FIELDS = ("main", "plan", "pack", "doctor")
UNREAD_BY_PACK = (
    "data.stream_block",
    "data.image_size",
    "data.split",
    "data.eval_split",
    "data.holdout_fraction",
)
WANTED = {  # of the fields: pack reads those of `data` alone
    "pack": lambda name: name.startswith("data.") and name not in UNREAD_BY_PACK,
}


@dataclasses.dataclass(frozen=True)
class Call:
    """A call of a door that must be refused.

    Attributes:
      door: the module.
      kind: of what is wrong with it.
      arguments: of the command line.
      named: words of which the line must have each.
    """

    door: str
    kind: str
    arguments: tuple[str, ...]
    named: tuple[str, ...] = ()


def calls() -> Iterator[Call]:
    """Yield every call."""
    for door, right in RIGHT.items():
        yield from of_any_door(door, right)
        for flag in READ.get(door, ()):
            base = {} if flag == "verify" else right
            for path in UNREAD:
                yield _call(door, "unreadable path", base, {flag: path}, _named(path))
        for flag in WRITTEN.get(door, ()):
            for path in UNWRITABLE:
                yield _call(door, "unwritable path", right, {flag: path}, _named(path))
        if "checkpoint" in right:
            for run in DAMAGED:
                if door != "report" or "run" in run:  # which shows what is left of a damaged one
                    yield _call(door, "damaged run", right, {"checkpoint": run})
        for flag in NUMBERS.get(door, ()):
            for text in NO_NUMBERS:
                yield _call(door, "no number", right, {flag: text}, (flag,))
        for given, named in MORE[door]:
            yield _call(door, "unknown or unfit", right, given, named)
        if door in WITH_FIELDS:
            wanted = WANTED.get(door, bool)
            base = {**RECIPE, **({} if door == "doctor" else right)}
            for name, value in FIELDS:
                if wanted(name):
                    unknown = name.partition(".")[0] in ("byol", "nothing")
                    words = (name.partition(".")[0] if unknown else name.rpartition(".")[2],)
                    yield _call(door, "field", base, {f"config.{name}": value}, words)


def of_any_door(door: str, right: Mapping[str, str]) -> Iterator[Call]:
    """Yield what is wrong with any door."""
    yield _call(door, "misspelt", right, {"no_flag": "1"}, ("no_flag",))
    yield Call(door, "no flag", (*_flags(right), "text.txt", "one.png"), ())
    for flag, value in right.items():
        if flag.startswith("config"):
            continue
        yield _call(door, "empty", right, {flag: ""}, (flag,))
        if flag != "query":
            twice = (*_flags(right), f"--{flag}={value}x")
            yield Call(door, "given twice", twice, (flag,))
    for flag in right:
        less = _flags({name: value for name, value in right.items() if name != flag})
        for bare in ((*less, f"--{flag}"), (f"--{flag}", *less)):
            if bare[-1] == f"--{flag}" or flag != "config":
                yield Call(door, "no value", bare, (flag,))
    for flag in REQUIRED.get(door, ()):
        less = {name: value for name, value in right.items() if name.partition(".")[0] != flag}
        yield _call(door, "missing", less, {}, ("recipe" if flag == "config" else flag,))


def _call(
    door: str,
    kind: str,
    right: Mapping[str, str],
    given: Mapping[str, str],
    named: tuple[str, ...] = (),
) -> Call:
    if "data" in given and "config.data.path" not in given:  # of which one is enough
        right = {name: value for name, value in right.items() if name != "config.data.path"}
    return Call(door, kind, _flags({**right, **given}), named)


def _flags(given: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(f"--{name}={value}" for name, value in given.items())


def _named(path: str) -> tuple[str, ...]:
    """Return what of a path must stand in the line: a byte is escaped, a home may be found."""
    return () if path == BYTES else (path.partition("/")[0],)
