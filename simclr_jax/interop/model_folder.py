"""A folder as on the Hugging Face Hub: what it holds, and reading it as if it were a stranger's.

    config.json               format, recipe, step, taps, checksums; timm's fields where it can load
    model.safetensors         encoder and classifier by torchvision's names
    head.safetensors          the projection head, and a classifier that reads it, if there are any
    encoder.py                the module for PyTorch
    preprocessor_config.json  what comes before it
    README.md                 the model card

No code in it is run, and nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import jax
from etils import epath
from flax import traverse_util
from ml_collections import ConfigDict

from simclr_jax import declaration, documents, errors, extras, files, recipes, records, validation
from simclr_jax.errors import BadFile, UserError, printable
from simclr_jax.fields import LABELLED
from simclr_jax.interop import torch_names
from simclr_jax.stages import build
from simclr_jax.train import saved
from simclr_jax.train.saved import Saved

FORMAT = 1
CONFIG, MODEL, HEAD = "config.json", saved.MODEL, "head.safetensors"
HUB = saved.HUB
KIND = "simclr_jax"
REMEDY = "export it again, or fetch it again"
SHOWN = 3


class Config(TypedDict):
    """What `config.json` says; there may be more."""

    model_type: str
    format: int
    step: int
    recipe: dict[str, Any]
    channels: int
    files: dict[str, str]
    classifier: NotRequired[dict[str, Any] | None]


def is_one(path: str) -> bool:
    """Tell whether a path is a model folder, or names one on the Hub."""
    return path.startswith(HUB) or (
        files.is_local(path) and (Path(files.expand_home(path)) / MODEL).is_file()
    )


def is_ours(path: str) -> bool:
    """Tell whether a path is a model folder that this program has written, or names the Hub."""
    if path.startswith(HUB):
        return True
    if not is_one(path):
        return False
    with contextlib.suppress(FileNotFoundError, UserError):
        said = documents.read(Path(files.expand_home(path)) / CONFIG, dict[str, Any], REMEDY)
        return said.get("model_type") == KIND
    return False


def read(path: str) -> Saved:
    """Read a model folder, or `hf://ORGANISATION/NAME`, as if it were a checkpoint.

    Raises:
      UserError: if there is none, it is damaged, of another program or another version, a package
        is missing, or the Hub cannot be reached.
    """
    with extras.needed("a model folder", "safetensors"):
        from safetensors.numpy import load
    folder = _fetched(path) if path.startswith(HUB) else Path(files.expand_home(path))
    config = _config(folder)
    record = _of_no_method(config["recipe"])
    try:
        validation.stored(record)
        recipe = records.recipe(record)
    except UserError as error:
        raise BadFile(f"{folder / CONFIG} has no recipe ({error}): {REMEDY}") from error
    arrays: dict[str, Any] = {}
    for name, checksum in config["files"].items():
        if name not in (MODEL, HEAD):
            raise BadFile(f"{folder / CONFIG} names {printable(name)}, which no folder has")
        content = _content(folder / name, checksum)
        try:
            arrays |= load(content)
        except Exception as error:  # safetensors has an error of its own for each damage
            reason = printable(str(error).splitlines()[0][:200])
            raise BadFile(f"{folder / name} is damaged ({reason}): {REMEDY}") from error
    return Saved(
        epath.Path(folder),
        config["step"],
        record,
        _leaves(arrays, recipe, config, folder),
    )


def _of_no_method(record: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe without what its method alone reads, which no encoder needs.

    The method of a stranger, or one of your own that is not here, is so never looked for.
    """
    known = {*recipes.base(), *records.NOT_RECIPE}
    kept = {name: value for name, value in record.items() if name in known}
    return kept | ({"method": declaration.DEFAULT} if "method" in record else {})


def _config(folder: Path) -> Config:
    path = folder / CONFIG
    try:
        found = documents.read(path, dict[str, Any], REMEDY)
    except FileNotFoundError:
        raise UserError(f"{folder} has no {CONFIG}: {REMEDY}") from None
    if found.get("model_type") != KIND:
        kind = printable(str(found.get("model_type"))[:80])
        raise BadFile(
            f"{path} is of a model of type {kind}, not {KIND}: give a folder that "
            "python -m simclr_jax.export --format=huggingface has written"
        )
    if found.get("format") != FORMAT:
        raise BadFile(
            f"{path} has format {str(found.get('format'))[:20]}, this version of simclr_jax reads "
            f"format {FORMAT}: export it again with this version, or load it with the other"
        )
    return documents.read(path, Config, REMEDY)


def _content(path: Path, checksum: str) -> bytes:
    try:
        content = documents.content(path, REMEDY, largest=2**40)
    except FileNotFoundError:
        raise BadFile(f"{path} is missing: {REMEDY}") from None
    if digest(content) != checksum:
        raise BadFile(f"{path} was altered since it was written: {REMEDY}")
    return content


def digest(content: bytes) -> str:
    """Return the checksum of a file's content as `config.json` has it."""
    return f"sha256 {hashlib.sha256(content).hexdigest()}"


def _leaves(arrays: dict[str, Any], recipe: ConfigDict, config: Config, folder: Path) -> Any:
    """Return arrays by path, as in a checkpoint; shapes are for who builds the network to check."""
    built = torch_names.architecture(recipe)
    if not 1 <= config["channels"] <= 4:
        raise BadFile(f"{folder / CONFIG} has channels {config['channels']}: {REMEDY}")
    try:
        first = jax.eval_shape(lambda: build.first_parts(recipe, config["channels"]))
    except (KeyError, TypeError, ValueError) as error:
        reason = printable(str(error).splitlines()[0][:200])
        raise BadFile(f"{folder / CONFIG} is of no network ({reason}): {REMEDY}") from error
    paths = list(traverse_util.flatten_dict(first))
    if config.get("classifier"):
        paths += [("params", "classifier", "dense", leaf) for leaf in ("kernel", "bias")]
    names = torch_names.paths(paths, built)
    found = {name for name in arrays if not name.endswith(f".{torch_names.COUNTER}")}
    if wrong := [f"{n} is missing" for n in names if n not in found] + [
        f"{printable(n[:80])} is unknown" for n in sorted(found - names.keys())
    ]:
        more = f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise BadFile(
            f"the arrays of {folder} are not those of its recipe ({'; '.join(wrong[:SHOWN])}"
            f"{more}): {REMEDY}"
        )
    flat = traverse_util.flatten_dict(torch_names.to_tree(arrays, names), sep="/")
    labelled = recipe.stage in LABELLED or "converted" in config["recipe"]
    part = "classifier" if labelled else "probe"
    return {name.replace("/classifier/", f"/{part}/"): x for name, x in flat.items()}


def _fetched(path: str) -> Path:
    """Return where the Hub's client keeps a folder of it, after fetching what has changed."""
    match = re.fullmatch(r"hf://([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", path)
    if match is None:
        raise UserError(f"{path} names no model: give hf://ORGANISATION/NAME, or with @REVISION")
    with extras.needed("hf://", "huggingface_hub"):
        from huggingface_hub import snapshot_download

    def fetched(*names: str) -> Path:
        try:
            return Path(snapshot_download(match[1], revision=match[2], allow_patterns=[*names]))
        except MemoryError:
            raise
        except Exception as error:  # its client has one for each library it goes through
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise errors.Unreachable(
                f"{path} cannot be fetched ({printable(lines[0][:200])}): see that the name is "
                "right and there is a network, or give a folder on this machine"
            ) from error

    _config(fetched(CONFIG))  # gigabytes of another model are not worth fetching
    return fetched(CONFIG, MODEL, HEAD)
