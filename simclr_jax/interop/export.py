"""From a run to files that other programs read, each compared before it is there."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from simclr_jax import alive
from simclr_jax.errors import UserError, choose
from simclr_jax.interop import (
    libraries,
    network,
    outputs,
    to_arrays,
    to_huggingface,
    to_onnx,
    to_stablehlo,
    to_tensorflow,
    to_torch,
)
from simclr_jax.interop.network import REFERENCE, TOLERANCE, Network
from simclr_jax.train import saved

Say = Callable[[str], None]
Taps = dict[str, np.ndarray]
BATCHES = (REFERENCE, 1)  # sizes that each export is run at
LARGEST_SIDE = 2**14


@dataclasses.dataclass(frozen=True)
class Format:
    """A kind of export.

    Attributes:
      suffixes: of its file; none: it is a directory.
      check: returns what runs it; raises `UserError` if that is not installed.
      write: writes a network to a path.
      run: returns the taps that the exported file gives for images of `Network.reference`.
      prepares: whether preprocessing can be inside.
      named: whether its arrays have the names of PyTorch's libraries.
    """

    suffixes: tuple[str, ...]
    check: Callable[[], str]
    write: Callable[[Network, Path], None]
    run: Callable[[Path, Network, np.ndarray], Taps]
    prepares: bool = False
    named: bool = False


FORMATS: dict[str, Format] = {
    "torch": Format((), to_torch.check, to_torch.write, to_torch.run, named=True),
    "safetensors": Format(
        (".safetensors",),
        to_arrays.check_safetensors,
        to_arrays.write_safetensors,
        to_arrays.run_safetensors,
        named=True,
    ),
    "onnx": Format((".onnx",), to_onnx.check, to_onnx.write, to_onnx.run, prepares=True),
    "stablehlo": Format(
        (), to_stablehlo.check, to_stablehlo.write, to_stablehlo.run, prepares=True
    ),
    "savedmodel": Format(
        (), to_tensorflow.check, to_tensorflow.write, to_tensorflow.run, prepares=True
    ),
    "numpy": Format((".npz",), to_arrays.check_numpy, to_arrays.write_numpy, to_arrays.run_numpy),
    "huggingface": Format(
        (), to_huggingface.check, to_huggingface.write, to_huggingface.run, named=True
    ),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """What to export of which run.

    Attributes:
      checkpoint: a workdir, or `WORKDIR@STEP`.
      format: a key of `FORMATS`.
      out: the file or directory to write.
      taps: which vectors; none: `h`, and `logits` of a run that was trained on labels.
      weights: "trained", or "average": their moving average.
      preprocess: "HEIGHTxWIDTH" of uint8 images that the file prepares itself; "": none.
      loads_in: a library that must load the state dict strictly and give equal features, or "".
    """

    checkpoint: str
    format: str
    out: str
    taps: tuple[str, ...] = ()
    weights: str = "trained"
    preprocess: str = ""
    loads_in: str = ""


def run(options: Options, say: Say = print) -> None:
    """Write an export, run it on reference images, and say by how much it differs.

    Raises:
      UserError: if the run cannot be read or has not what is wanted, the target cannot hold it, a
        package is missing, the output is there already, or the export differs by more than
        `TOLERANCE`.
    """
    choose("--format", options.format, FORMATS)
    choose("--weights", options.weights, saved.WEIGHTS)
    form = FORMATS[options.format]
    sides = _sides(options, form)
    out = outputs.place(options.out, form.suffixes)
    if options.loads_in:
        choose("--loads_in", options.loads_in, libraries.LIBRARIES)
        if options.format != "torch":
            raise UserError(f"--loads_in={options.loads_in} is of --format=torch: leave it out")
    runtime = form.check()
    read = saved.read(options.checkpoint)
    leaving = network.of_saved(read, options.taps, options.weights, sides)
    wanted = libraries.demand(leaving, options.loads_in) if options.loads_in else None
    for line in _about(leaving):
        say(line)
    with outputs.aside(out) as path:
        with alive.during("writing the export", say):
            form.write(leaving, path)
        say(f"compare   {outputs.size(path) / 1e6:.1f} MB, in {runtime}")
        with alive.during("running it on the reference images", say):
            found = compared(leaving, lambda images: form.run(path, leaving, images))
        for line in found:
            say(line)
        if wanted:
            state = to_torch.load_state(path)
            with alive.during(f"running it in {wanted.library}", say):
                found = compared(
                    leaving, lambda images: libraries.run(wanted, state, leaving, images)
                )
            for line in found:
                say(f"{line}, in {wanted.library} {wanted.model}")
    if form.named:
        for line in libraries.words(leaving):
            say(f"loads     {line}")
    say(f"written   {out}")


def compared(leaving: Network, given: Callable[[np.ndarray], Taps]) -> list[str]:
    """Compare an export with this program; return a line for each tap.

    Args:
      leaving: what was exported.
      given: runs the exported file.

    Raises:
      UserError: if a tap differs by more than `TOLERANCE` of its largest number.
    """
    worst: dict[str, float] = {}
    for count in BATCHES:
        images = leaving.reference(count)
        found = given(images)
        expected = leaving.expected(images)
        expected = {tap: expected[tap] for tap in leaving.taps if tap in found}
        for tap, share in network.differences(found, expected).items():
            worst[tap] = max(share, worst.get(tap, 0.0))
    for tap, share in worst.items():
        if not share <= TOLERANCE:  # NaN is no small difference
            raise UserError(
                f"the export differs by {share:.2g} of the largest number of {tap}, of at most "
                f"{TOLERANCE:g}, and is not kept: try another --format, and report this"
            )
    return [
        f"differs   by {share:.1e} of the largest number of {tap}" for tap, share in worst.items()
    ]


def _about(leaving: Network) -> list[str]:
    built, e = leaving.architecture, leaving.encoder
    height, width, channels = leaving.shape()
    kind = "uint8" if leaving.sides else "floats in [0, 1]"
    return [
        f"encoder   {e.run}: ResNet-{built.depth}, width {built.width:g}, {built.stem} stem, "
        f"variant {built.variant}, {leaving.weights} weights",
        f"taps      {', '.join(leaving.taps)}",
        f"images    {height}x{width}, channels: {channels}, {kind}; input {e.config.model.input}",
    ]


def _sides(options: Options, form: Format) -> tuple[int, int] | None:
    """Return height and width of the images that an export is to prepare itself."""
    text = options.preprocess
    if not text:
        return None
    if not form.prepares:
        able = ", ".join(name for name, other in FORMATS.items() if other.prepares)
        raise UserError(
            f"--preprocess={text}, but --format={options.format} holds no preprocessing: choose "
            f"{able}, or leave it out"
        )
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    sides = (int(match[1]), int(match[2])) if match else (0, 0)
    if not all(1 <= side <= LARGEST_SIDE for side in sides):
        raise UserError(
            f"--preprocess={text[:80]} is no size: give HEIGHTxWIDTH in pixels, such as 256x256"
        )
    return sides
