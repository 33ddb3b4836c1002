"""Weights that PyTorch programs leave on disk, as arrays by name.

Two kinds are read: what `torch.save` writes, by `torch.load(weights_only=True)`, and safetensors.
Neither runs code of the file: torch's restricted unpickler makes tensors, plain containers and
numbers, and refuses all else. Names in nested dictionaries are joined by `/`:
`state_dict/module.encoder_q.conv1.weight`.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from simclr_jax import documents, errors, extras, files
from simclr_jax.errors import UserError, printable

SAFE = ".safetensors"
PICKLED = (".pt", ".pth", ".pth.tar", ".tar", ".ckpt", ".bin", ".torch")
IN_A_FOLDER = ("model.safetensors", "pytorch_model.bin")  # as Hugging Face's hub has them
DEEPEST = 8  # dictionaries one in the other; a stranger's may hold itself
AGAIN = (
    "if you trust it, load it in PyTorch and save its weights alone: "
    'torch.save({k: v.clone() for k, v in model.state_dict().items()}, "weights.pth")'
)
DTYPES = {"BF": "bfloat", "F": "float", "I": "int", "U": "uint"}  # of safetensors, here


@dataclasses.dataclass(frozen=True)
class Weights:
    """Tensors of one file.

    Attributes:
      path: of the file.
      shapes: of each tensor, by its name.
      dtypes: of each, as PyTorch calls it (float32, bfloat16, ...), likewise.
      others: keys at the top of the file that hold no tensor: epoch, arch, ...
      said: texts that a file of safetensors carries besides, by name.
    """

    path: str
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]
    others: list[str]
    said: dict[str, str]
    _get: Callable[[str], np.ndarray]

    def read(self, name: str) -> np.ndarray:
        """Return the values of a tensor, in float32.

        Raises:
          UserError: if they are damaged, not finite, or no floats.
        """
        dtype = self.dtypes[name]
        if not re.fullmatch(r"b?float\d+", dtype):
            raise UserError(f"{name} of {self.path} is {dtype}, but weights are floats: {AGAIN}")
        value = _guarded(self.path, lambda: self._get(name))
        if not np.all(np.isfinite(value)):
            raise UserError(
                f"{name} of {self.path} is not finite: the run that saved it had diverged"
            )
        return value


def find(source: str) -> Path | None:
    """Return the file of PyTorch's weights that a source means; None if it means another thing.

    Args:
      source: a file, known by its ending, or a folder with a file of `IN_A_FOLDER`.
    """
    if not files.is_local(source):
        return None
    path = Path(files.expand_home(source))
    if path.is_dir():
        return next((path / name for name in IN_A_FOLDER if (path / name).is_file()), None)
    if path.with_name(f"{path.name}.index").is_file():  # TensorFlow's, which may be so called
        return None
    return path if path.name.lower().endswith((SAFE, *PICKLED)) else None


def open_weights(path: Path) -> Weights:
    """Open a file of weights; of safetensors, values are read when they are asked for.

    Raises:
      UserError: if there is no such file, it is damaged, holds code or no tensors, or the package
        that reads it is missing.
    """
    try:
        documents.check_kind(path)
    except OSError as error:
        raise errors.unreadable(f"--source={path}", error, "give a file that is there") from error
    return _safetensors(path) if path.name.lower().endswith(SAFE) else _pickled(path)


def _safetensors(path: Path) -> Weights:
    try:
        import safetensors
    except ModuleNotFoundError as error:
        raise _missing("safetensors", error) from None
    # Its handles for NumPy cannot give bfloat16; those for JAX can.
    opened = _guarded(str(path), lambda: safetensors.safe_open(str(path), "flax"))

    def about(name: str) -> tuple[tuple[int, ...], str]:
        part = opened.get_slice(name)
        kind = re.sub("[A-Z]+", lambda match: DTYPES.get(match[0], match[0]), part.get_dtype())
        return tuple(part.get_shape()), kind

    def get(name: str) -> np.ndarray:
        with jax.default_device(jax.local_devices(backend="cpu")[0]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that float64 becomes float32
            return np.asarray(opened.get_tensor(name)).astype(np.float32)

    found = _guarded(str(path), lambda: {name: about(name) for name in opened.keys()})  # noqa: SIM118
    shapes = {name: shape for name, (shape, _) in found.items()}
    dtypes = {name: kind for name, (_, kind) in found.items()}
    said = _guarded(str(path), opened.metadata) or {}
    return Weights(str(path), shapes, dtypes, [], said, get)


def _pickled(path: Path) -> Weights:
    try:
        import torch
    except ModuleNotFoundError as error:
        raise _missing("torch", error) from None
    _guarded(str(path), lambda: _check_sums(path))

    def load() -> Any:
        with torch.serialization.safe_globals(_harmless()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)

    content = _guarded(str(path), load)
    if not isinstance(content, Mapping):
        raise UserError(
            f"{path} holds {type(content).__name__} and no dictionary of tensors: {AGAIN}"
        )
    found = dict(_tensors(content, torch.Tensor))
    holding = {name.partition("/")[0] for name in found}

    def get(name: str) -> np.ndarray:
        return found[name].detach().to(torch.float32).numpy()

    return Weights(
        str(path),
        {name: tuple(tensor.shape) for name, tensor in found.items()},
        {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in found.items()},
        [printable(str(key)) for key in content if str(key) not in holding],
        {},
        get,
    )


def _tensors(
    content: Mapping[Any, Any], kind: type, before: str = "", depth: int = 0
) -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        name = f"{before}{printable(str(key))}"
        if isinstance(value, kind):
            yield name, value
        elif isinstance(value, Mapping) and depth < DEEPEST:
            yield from _tensors(value, kind, f"{name}/", depth + 1)


def _harmless() -> list[Any]:
    """Return what checkpoints hold beside tensors, and torch does not make by itself.

    All of it is data: the arguments of the program, and NumPy's numbers, under both names that
    their module has had.
    """
    core = np._core.multiarray  # type: ignore[attr-defined]
    dtypes = {type(np.dtype(kind)) for kind in "?bBhHiIlLqQefd"}
    named = [
        (make, f"numpy.{name}.multiarray.{make.__name__}")
        for make in (core.scalar, core._reconstruct)
        for name in ("core", "_core")
    ]
    return [argparse.Namespace, np.dtype, np.ndarray, *dtypes, *named]


def _check_sums(path: Path) -> None:
    """Hold each member of an archive to its checksum, which torch itself does not look at."""
    if not zipfile.is_zipfile(path):
        return  # written by torch before 1.6, or no archive at all: torch says which
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if not member.CRC:  # saved with checksums switched off
                continue
            with archive.open(member) as part:
                while part.read(2**24):
                    pass


def _guarded(path: str, read: Callable[[], Any]) -> Any:
    """Call `read`; turn what libraries raise about bad files into one line."""
    try:
        return read()
    except (UserError, ImportError, MemoryError):
        raise
    except OSError as error:
        raise errors.unreadable(path, error, "copy it again") from error
    except Exception as error:  # a damaged file fails in any of the ways of pickle, zip and torch
        said = " ".join(str(error).split())
        if match := re.search(r"GLOBAL (\S+)", said):
            raise UserError(
                f"{path} holds code beside weights ({printable(match[1])}), which is not run: "
                f"{AGAIN}"
            ) from error
        if "TorchScript" in said:
            raise UserError(
                f"{path} is a program (TorchScript), which is not run: {AGAIN}"
            ) from error
        reason = printable(said.split(". ")[0][:200]) or type(error).__name__
        raise UserError(
            f"{path} is damaged or no file of weights ({reason}): copy it again"
        ) from error


def _missing(package: str, error: ModuleNotFoundError) -> Exception:
    if error.name != package:
        return error
    return UserError(
        f"these weights are read with {package}, which is not installed: {extras.install(package)}"
    )
