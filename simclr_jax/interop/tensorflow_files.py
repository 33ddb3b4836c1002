"""Variables of the official programs as they lie on disk, by their official names.

Read with TensorFlow's own checkpoint reader: nothing is unpickled and no graph is run. Four kinds
of source are known:

    model.ckpt-N          TensorFlow 1, by variable names (`run.py`, and the released models)
    hub/ or saved_model/  a SavedModel: its weights lie in `variables/`
    ckpt-N                TensorFlow 2, by object paths (`tf2/run.py`)

The last two of TensorFlow 2 hold a graph of objects, which knows the names of the variables too.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from etils import epath

from simclr_jax import buckets, documents, extras, files
from simclr_jax.errors import UserError, printable

OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
SECTIONS = {
    "tf1": ("base_model/", "head_contrastive/", "head_supervised/"),
    "tf2": ("resnet/", "projection_head/", "head_supervised/"),
}

# What of a checkpoint is no weight: words for it, and the names it goes by.
LEFT_OUT = (
    ("moving average (ema)", r"(^|[/_])ema([/_]|$)|ExponentialMovingAverage"),
    ("memory of embeddings", r"(^|[/_])memory([/_]|$)"),
    (
        "state of the optimiser",
        r"/(Momentum|Adam|Adam_1)$|\.OPTIMIZER_SLOT|^optimizer/|^beta\d_power$|^LARSOptimizer/",
    ),
    ("step counters", r"^(global_step|iter|save_counter)(/\.ATTRIBUTES/VARIABLE_VALUE)?$"),
)
STEPS = 2**31  # a state counts its updates in int32


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Weights of one official model.

    Attributes:
      path: what the files' names begin with.
      flavour: "tf1" or "tf2".
      step: updates of the run that saved it; None: it does not say.
      shapes: of each variable of the model, by official name as a model alone in its process has.
      left_out: names of the other variables, by what they are.
      unknown: names that are neither.
    """

    path: str
    flavour: str
    step: int | None
    shapes: dict[str, tuple[int, ...]]
    left_out: dict[str, list[str]]
    unknown: list[str]
    _keys: dict[str, str]
    _reader: Any

    def read(self, name: str) -> np.ndarray:
        """Return the values of a variable, in float32.

        Raises:
            UserError: if its bytes are missing or damaged, or it holds no floats.
        """
        key = self._keys[name]
        value = np.asarray(_guarded(self.path, lambda: self._reader.get_tensor(key)))
        if not np.issubdtype(value.dtype, np.floating):
            raise UserError(f"{name} of {self.path} is {value.dtype}, but weights are floats")
        return value.astype(np.float32)


def find(source: str) -> str:
    """Return what the names of a checkpoint's files begin with.

    Args:
      source: such a beginning (`model.ckpt-N`), or one of its files; or a directory: of a
        SavedModel, of one numbered SavedModel, with the file `checkpoint`, which names the newest,
        or with just one checkpoint.

    Raises:
      UserError: if there is no checkpoint.
    """
    if not files.is_local(source):
        raise UserError(
            f"--source={source} is not on this machine: copy it first, with "
            "gcloud storage cp --recursive (docs/checkpoints.md)"
        )
    path = epath.Path(files.expand_home(re.sub(r"\.(index|meta|data-\d+-of-\d+)$", "", source)))
    if path.name and path.with_name(path.name + ".index").exists():
        return str(path)
    if path.name in ("checkpoint", "saved_model.pb") and not path.is_dir():
        path = path.parent
    if not path.is_dir():
        raise UserError(
            f"--source={source} is no TensorFlow checkpoint: give model.ckpt-N, ckpt-N, their "
            "directory or that of a SavedModel"
        )
    numbered = [inner for inner in buckets.listing(path) if inner.name.isdigit()]
    for model in (path, *(numbered if len(numbered) == 1 else [])):
        if (model / "variables" / "variables.index").exists():
            return str(model / "variables" / "variables")
    found = beside(str(path / "any"))
    listed = path / "checkpoint"
    text = documents.content(listed).decode(errors="replace") if listed.is_file() else ""
    if match := re.search(r'^model_checkpoint_path: "(.+)"', text, re.MULTILINE):
        newest = match[1].rpartition("/")[2]
        if newest not in found:
            there = ", ".join(found) or "none"
            raise UserError(
                f"{listed} names {newest}, which is not there (but {there}): copy its .index and "
                ".data files, or name another"
            )
        return str(path / newest)
    if len(found) == 1:
        return str(path / found[0])
    what = f"several ({', '.join(found)}): name one" if found else "none (no file *.index)"
    raise UserError(f"--source={source} is to hold a TensorFlow checkpoint, but has {what}")


def beside(prefix: str) -> list[str]:
    """Return the names of all checkpoints in the directory of one."""
    directory = epath.Path(prefix).parent
    return sorted(file.name.removesuffix(".index") for file in directory.glob("*.index"))


def open_checkpoint(source: str) -> Checkpoint:
    """Open an official checkpoint; values are read when asked for.

    Raises:
      UserError: if TensorFlow is missing, there is no checkpoint, or it is damaged or has no
        variables of the official programs.
    """
    prefix = find(source)
    reader = _reader(prefix)
    shapes = _guarded(prefix, reader.get_variable_to_shape_map)
    flavour = "tf2" if OBJECT_GRAPH in shapes else "tf1"
    keys = {key: key for key in shapes}
    if flavour == "tf2":
        keys = _guarded(prefix, lambda: _full_names(reader.get_tensor(OBJECT_GRAPH)))
    weights, left_out, unknown = _sort(keys, SECTIONS[flavour])
    if not weights:
        shown = ", ".join(sorted(keys)[:4])
        raise UserError(
            f"{prefix} holds no variable of google-research/simclr (it has {shown}, ...): "
            f"names there begin with {' or '.join(SECTIONS[flavour])}"
        )
    plain = _numbered_from_zero(weights) if flavour == "tf2" else {name: name for name in weights}
    return Checkpoint(
        path=prefix,
        flavour=flavour,
        step=_step(prefix, reader, shapes),
        shapes={plain[name]: tuple(shapes[keys[name]]) for name in weights},
        left_out=left_out,
        unknown=unknown,
        _keys={plain[name]: keys[name] for name in weights},
        _reader=reader,
    )


def _reader(prefix: str) -> Any:
    try:
        import tensorflow as tf
    except ModuleNotFoundError as error:
        if error.name != "tensorflow":
            raise
        raise UserError(
            "official checkpoints are read with TensorFlow, which is not installed: "
            f"{extras.install('tf')}"
        ) from None
    return _guarded(prefix, lambda: tf.train.load_checkpoint(prefix))


def _guarded(prefix: str, read: Callable[[], Any]) -> Any:
    """Call `read`; turn what TensorFlow raises about bad files into one line."""
    try:
        return read()
    except (UserError, ImportError):
        raise
    # Its errors in C++ become whichever of Python's their codes stand for, those of its messages
    # are others again, and what is of another shape than it should be fails in its own way.
    except Exception as error:
        said = str(getattr(error, "message", error)).splitlines() or [type(error).__name__]
        reason = printable(said[0][:200])
        raise UserError(
            f"checkpoint {prefix} is damaged or incomplete ({reason}): copy it again, with "
            "all its .index and .data files"
        ) from error


def _full_names(graph: bytes) -> dict[str, str]:
    """Return the key under which each variable is stored, by the name it had in the program."""
    from tensorflow.core.protobuf import trackable_object_graph_pb2 as objects

    found: dict[str, str] = {}
    for node in objects.TrackableObjectGraph.FromString(graph).nodes:
        for attribute in node.attributes:
            key = attribute.checkpoint_key
            name = attribute.full_name.removesuffix(":0") or key
            if found.setdefault(name, key) != key:  # which of two models that were saved together?
                raise UserError(
                    f"two variables are called {name} ({found[name]} and {key}): save each model "
                    "in a checkpoint of its own"
                )
    return found


def _sort(
    keys: dict[str, str], sections: Iterable[str]
) -> tuple[list[str], dict[str, list[str]], list[str]]:
    """Return the names of weights, of what is left out by reason, and of what nobody knows."""
    weights: list[str] = []
    left_out: dict[str, list[str]] = {}
    unknown: list[str] = []
    for name, key in sorted(keys.items()):
        if name == OBJECT_GRAPH:
            continue
        reasons = [words for words, law in LEFT_OUT if re.search(law, name) or re.search(law, key)]
        if reasons:
            left_out.setdefault(reasons[0], []).append(name)
        elif name.startswith(tuple(sections)):
            weights.append(name)
        else:
            unknown.append(name)
    return weights, left_out, unknown


def _numbered_from_zero(names: list[str]) -> dict[str, str]:
    """Return names as Keras gives them in a fresh process.

    Keras counts layers through the whole process, so the model of a program that had built another
    before begins at `conv2d_54`.
    """
    seen: dict[str, set[int]] = {}

    def numbers(name: str) -> list[tuple[str, int] | None]:
        matches = (
            None
            if module.startswith(("nl_", "l_"))
            else re.match(r"(.*?[a-z])(?:_(\d{1,18}))?$", module)
            for module in name.split("/")[:-1]
        )
        return [(match[1], int(match[2] or 0)) if match else None for match in matches]

    for name in names:
        for counter in filter(None, numbers(name)):
            seen.setdefault(counter[0], set()).add(counter[1])
    ranks = {base: {n: i for i, n in enumerate(sorted(found))} for base, found in seen.items()}

    def renumber(name: str) -> str:
        *modules, leaf = name.split("/")
        for i, counter in enumerate(numbers(name)):
            if counter:
                base, rank = counter[0], ranks[counter[0]][counter[1]]
                modules[i] = f"{base}_{rank}" if rank else base
        return "/".join((*modules, leaf))

    return {name: renumber(name) for name in names}


def _step(prefix: str, reader: Any, shapes: Any) -> int | None:
    counters = ("global_step", "global_step/.ATTRIBUTES/VARIABLE_VALUE")
    key = next((counter for counter in counters if counter in shapes), None)
    if key is not None:
        step = _guarded(prefix, lambda: int(np.asarray(reader.get_tensor(key)).item()))
        if not 0 <= step < STEPS:
            raise UserError(
                f"{prefix} is of step {step}, and a run has 0 to {STEPS - 1}: give another "
                "checkpoint"
            )
        return step
    match = re.search(r"ckpt-(\d{1,18})$", prefix) or re.search(
        r"/(\d{1,18})/variables/variables$", prefix
    )
    return int(match[1]) if match and int(match[1]) < STEPS else None
