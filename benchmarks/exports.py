"""Export encoders with random weights to every format, and print by how much each differs.

    python benchmarks/exports.py
    python benchmarks/exports.py --networks=R50 --formats=torch,onnx

A row for each network and format: bytes, the largest difference over taps and batches as a share of
the tap's largest number, seconds. Formats whose package is missing are left out and named.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import traverse_util

from simclr_jax import recipes
from simclr_jax.errors import UserError
from simclr_jax.interop import export, libraries, network, outputs, to_torch
from simclr_jax.stages import build
from simclr_jax.train.saved import Saved

NETWORKS: dict[str, dict[str, Any]] = {
    "R18": {"depth": 18},
    "R18, CIFAR stem": {"depth": 18, "stem": "cifar"},
    "R18, variant torchvision": {"depth": 18, "variant": "torchvision"},
    "R50": {"depth": 50},
    "R50, variant torchvision": {"depth": 50, "variant": "torchvision"},
    "R50 2x, SK": {"depth": 50, "width": 2.0, "sk_ratio": 0.0625},
}


def made(fields: dict[str, Any]) -> Saved:
    """Return a checkpoint with random weights and statistics, as a run would leave it."""
    config, random = recipes.base(), np.random.default_rng(0)
    config.model.update(fields)
    config.data.image_size = 32 if config.model.stem == "cifar" else 224
    with jax.default_device(jax.devices("cpu")[0]):
        first = jax.device_get(build.first_variables(config, 3))
    leaves = {}
    for name, x in traverse_util.flatten_dict(first, sep="/").items():
        low, high = {"scale": (0.3, 0.8), "var": (0.5, 1.5)}.get(name.rpartition("/")[2], (0, 0))
        if high:
            x = random.uniform(low, high, x.shape)
        elif name.endswith(("/bias", "/mean")):
            x = 0.1 * random.normal(size=x.shape)
        leaves[name] = np.asarray(x, np.float32)
    return Saved(epath.Path("random"), 1, config.to_dict(), leaves)


def row(name: str, leaving: network.Network, kind: str, place: Path) -> tuple[str, ...]:
    """Export a network, and return what is to be said of it."""
    form, begun = export.FORMATS[kind], time.monotonic()
    form.check()
    out = place / f"out{(form.suffixes or ('',))[0]}"
    form.write(leaving, out)
    worst = 0.0
    for count in export.BATCHES:
        images = leaving.reference(count)
        shares = network.differences(form.run(out, leaving, images), leaving.expected(images))
        worst = max(worst, *shares.values())
    size = outputs.size(out) / 1e6
    if kind == "torch":
        for library in libraries.LIBRARIES:
            print(f"{name}: {_in_library(library, leaving, out)}", flush=True)
    shutil.rmtree(out) if out.is_dir() else out.unlink()
    return name, kind, f"{worst:.1e}", f"{size:.1f} MB", f"{time.monotonic() - begun:.0f} s"


def _in_library(library: str, leaving: network.Network, out: Path) -> str:
    found = libraries.match(leaving, library)
    if not found.model:
        return str(found)
    images = leaving.reference()
    try:
        given = libraries.run(found, to_torch.load_state(out), leaving, images)
    except UserError as error:
        return f"{found}; not run: {error}"
    share = network.differences(given, {"h": leaving.expected(images)["h"]})["h"]
    return f"{found}; loaded strictly, h differs by {share:.1e}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--networks", help="names, with ; between them", default=";".join(NETWORKS))
    parser.add_argument("--formats", default=",".join(export.FORMATS))
    given = parser.parse_args()
    for name in given.networks.split(";"):
        leaving = network.of_saved(made(NETWORKS[name]), ("h",))
        for kind in given.formats.split(","):
            with tempfile.TemporaryDirectory() as place:
                try:
                    print("  ".join(row(name, leaving, kind, Path(place))), flush=True)
                except UserError as error:
                    print(f"{name}  {kind}  left out: {error}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
