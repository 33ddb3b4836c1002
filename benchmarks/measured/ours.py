"""The process that runs the step of a recipe, on images made in memory; see `worker.py`.

The step is the one that trains: `train.step.make_step` of the stage of the recipe, compiled for the
devices that are here, with state and batch donated and sharded as in training. Several steps are
put in the queue of the device before the last is waited for, as the loop does.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from measured import kernels, pieces, roofline, worker
from simclr_jax import parallel, recipes
from simclr_jax.data.sources import Opened
from simclr_jax.planning import devices, program
from simclr_jax.planning.described import KNOWN, Case, describe_images
from simclr_jax.planning.footprint import GPU, TPU
from simclr_jax.stages.prepare import prepare
from simclr_jax.train.stage import Stage
from simclr_jax.train.step import make_step

CLASSES = 10  # of data sets that are not well known


@dataclasses.dataclass
class Built:
    """A compiled step with all that it needs."""

    config: ConfigDict
    mesh: Mesh
    stage: Stage
    compiled: Any
    state: Any
    batch: dict[str, jax.Array]
    calls: int  # steps that one call of the device takes

    def call(self) -> dict[str, jax.Array]:
        """Take `calls` steps, and return their metrics."""
        self.state, metrics = self.compiled(self.state, self.batch, self.stage.frozen)
        return metrics


BUILT: dict[str, Built] = {}


def machine() -> dict[str, Any]:
    """Return what the device and the programs are; `known` names the device in planning."""
    device = jax.devices()[0]
    kind = device.device_kind
    return {
        "device": kind,
        "platform": device.platform,
        "count": jax.device_count(),
        "memory": (device.memory_stats() or {}).get("bytes_limit", 0),
        "known": _known(kind),
        "jax": jax.__version__,
        "peak_flops": devices.DEVICES[name].flops if (name := _known(kind)) else 0.0,
        "runtime": " ".join(device.client.platform_version.split())[:120],
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)),
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
    }


def _known(kind: str) -> str:
    """Return the name in planning of what JAX calls a kind of device, or ""."""
    flat = f"_{kind.lower().replace(' ', '_').replace('-', '_')}_"
    return max((name for name in devices.DEVICES if f"_{name}_" in flat), key=len, default="")


def case(recipe: str, fields: dict[str, Any], batch: int, canvas: int) -> Case:
    """Return a recipe with other fields for a batch of so many images on each device.

    Args:
      recipe: a file, as --config takes it.
      fields: dotted names and values.
      batch: images on a device.
      canvas: side in pixels of the images that the device crops.
    """
    path, _, argument = recipe.partition(":")
    spec = importlib.util.spec_from_file_location("recipe", worker.ROOT / path)
    assert spec is not None and spec.loader is not None
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    config = module.get_config(*([argument] if argument else []))
    count = jax.device_count()
    for name, value in {**fields, "train.batch_size": batch * count}.items():
        recipes.put(config, name, value)
    total, test, classes = KNOWN.get(config.data.name, (50_000, 1000, CLASSES))
    train, held_out = (describe_images(images, canvas, classes) for images in (total, test))
    opened = Opened(train, held_out, train)
    ready = prepare(config, count, open_all=lambda *_: opened, read=lambda *_: [])
    return Case(ready.config, ready, count)


def job(recipe: str, fields: dict[str, Any], canvas: int) -> dict[str, Any]:
    """Return what a `torch_step.Job` must hold to do the work of a recipe."""
    c = case(recipe, fields, 2, canvas).config
    return {
        "depth": c.model.depth,
        "width": c.model.width,
        "stem": c.model.stem,
        "size": c.data.image_size,
        "layers": recipes.head_layers(c),
        "dim": c.head.dim,
        "dtype": c.train.dtype,
        "temperature": c.loss.temperature,
    }


def planned(recipe: str, fields: dict[str, Any], canvas: int, batches: list[int]) -> dict[int, int]:
    """Return the bytes that the plan expects a step with each of `batches` to need.

    Nothing is compiled; see docs/planning.md.
    """
    steps = case(recipe, fields, min(batches), canvas).at_any_batch()
    rules = TPU if jax.default_backend() == "tpu" else GPU
    return {batch: steps.footprint(batch, rules).peak for batch in batches}


def build(
    name: str, recipe: str, fields: dict[str, Any], batch: int, canvas: int, calls: int = 1
) -> dict[str, Any]:
    """Compile a step, make its state and a batch of random images, and take two calls.

    Args:
      name: by which it is known from now on.
      recipe: see `case`.
      fields: likewise.
      batch: likewise.
      canvas: likewise.
      calls: steps that one call of the device takes.
    """
    found = case(recipe, fields, batch, canvas)
    mesh = parallel.make_mesh()
    stage = found.stage(mesh)
    step: Any = make_step(stage, mesh)
    state = stage.init()
    described = {
        key: jax.ShapeDtypeStruct((calls, *x.shape[1:]), x.dtype, sharding=x.sharding)
        for key, x in found.batch(batch, mesh).items()
    }
    classes = found.prepared.train.classes
    start = time.perf_counter()
    lowered = step.lower(state, described, stage.frozen)
    traced = time.perf_counter()
    compiled = lowered.compile()
    done = time.perf_counter()
    batches = {key: random_array(key, x, classes) for key, x in described.items()}
    BUILT[name] = built = Built(found.config, mesh, stage, compiled, state, batches, calls)
    jax.block_until_ready([built.call() for _ in range(2)])
    one = program.read(step, parallel.describe(mesh, found.state()), found.batch(batch, mesh))
    return {
        "batch": batch,
        "devices": mesh.size,
        "views": stage.views_per_image * batch * mesh.size,
        "trace_s": traced - start,
        "compile_s": done - traced,
        "parameters": sum(x.size for x in jax.tree.leaves(built.state.params)),
        "flops": program.flops(one),
        **roofline.of_compiled(compiled, calls),
    }


def random_array(name: str, like: jax.ShapeDtypeStruct, classes: int) -> jax.Array:
    """Return an array of a batch, made on the devices: noise for images, numbers for the rest."""
    shape, dtype = like.shape, like.dtype

    def make() -> jax.Array:
        if name.startswith("views"):
            return jax.random.uniform(jax.random.key(0), shape, dtype)
        if dtype == np.uint8:
            return jax.random.bits(jax.random.key(0), shape, jnp.uint8)
        row = jnp.arange(shape[1], dtype=dtype)
        if name == "position":
            row = jnp.stack([jnp.zeros_like(row), row], -1)
        if name == "start":
            return jnp.zeros(shape, dtype)
        return jnp.broadcast_to(row % classes if name == "label" else row, shape)

    return jax.jit(make, out_shardings=like.sharding)()


def run(name: str, calls: int) -> dict[str, float]:
    """Return the seconds of a step, the mean over so many calls, and the last loss."""
    built = BUILT[name]
    start = time.perf_counter()
    for _ in range(calls):
        metrics = built.call()
    jax.block_until_ready(metrics)
    seconds = (time.perf_counter() - start) / (calls * built.calls)
    return {"seconds": seconds, "loss": float(metrics["loss"][-1])}


def parts(name: str, calls: int) -> dict[str, float]:
    """Return the seconds of the views alone and of the loss alone, forth and back."""
    built = BUILT[name]
    alone = {
        "augmentation": pieces.views(built.stage, built.batch),
        "loss": pieces.loss(built.stage, built.mesh, built.state, built.batch),
    }
    return {piece: _timed(call, calls) for piece, call in alone.items()}


def _timed(call: Callable[[], Any], calls: int) -> float:
    """Return the seconds of a call, the median of three times so many."""
    jax.block_until_ready(call())
    times = []
    for _ in range(3):
        start = time.perf_counter()
        for _ in range(calls):
            result = call()
        jax.block_until_ready(result)
        times.append((time.perf_counter() - start) / calls)
    return float(np.median(times))


def ceilings(copied: int, side: int, calls: int) -> dict[str, float]:
    """Return the bytes a second of a copy and the operations a second of a matrix product here.

    Args:
      copied: bytes of the array that is read and written, in bfloat16.
      side: of the square matrices, in bfloat16; the product is accumulated in float32.
      calls: of each, three times.
    """
    array = jax.random.normal(jax.random.key(0), (copied // 2,), jnp.bfloat16)
    add = jax.jit(lambda x: x + 1)  # a plain copy might be none
    matrix = jax.random.normal(jax.random.key(1), (side, side), jnp.bfloat16)
    product = jax.jit(lambda a: jnp.matmul(a, a, preferred_element_type=jnp.bfloat16))
    return {
        "bytes_per_s": 2 * array.nbytes / _timed(lambda: add(array), calls),
        "flops_per_s": 2 * side**3 / _timed(lambda: product(matrix), calls),
    }


def profile(name: str, calls: int) -> dict[str, Any]:
    """Record some calls and return the kernels by kind; see `kernels.summary`."""
    built = BUILT[name]
    with tempfile.TemporaryDirectory() as directory:
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # of no use here, and large
        with jax.profiler.trace(directory, profiler_options=options):
            for _ in range(calls):
                metrics = built.call()
            jax.block_until_ready(metrics)
        found, named = kernels.read(Path(directory)), kernels.names(built.compiled.as_text())
    return kernels.summary(found, calls * built.calls, named)


def save(name: str, path: str) -> None:
    """Write all numbers of the state of a step to an archive."""
    leaves = jax.tree_util.tree_leaves_with_path(BUILT[name].state)
    arrays: dict[str, Any] = {jax.tree_util.keystr(key): np.asarray(leaf) for key, leaf in leaves}
    np.savez(path, **arrays)


def has_field(name: str) -> bool:
    """Tell whether recipes have a field."""
    try:
        recipes.get(recipes.base(), name)
    except (KeyError, AttributeError):
        return False
    return True


def drop(name: str) -> None:
    """Forget a step, and give its memory back."""
    BUILT.pop(name, None)


def main() -> None:
    """Answer, with compiled programs kept where the command does (`parallel.py`)."""
    parallel.use_compilation_cache()
    asked = (machine, job, planned, build, run, parts, ceilings, profile, save, has_field, drop)
    worker.serve({function.__name__: function for function in asked})


if __name__ == "__main__":
    main()
