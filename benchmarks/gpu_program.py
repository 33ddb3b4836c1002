"""What a step compiled for an H100 reads and writes, on a machine that has none.

    pip install jax-cuda12-plugin==JAX jax-cuda12-pjrt==JAX    # JAX's own version; no CUDA, no card
    python benchmarks/gpu_program.py --config=configs/imagenet.py --images=64

The plugin holds XLA's compiler for GPUs, and a description of a card stands in for one. Nothing is
run: kernels are not tuned (which would need the card), and what cuDNN takes for itself is not
known; which operations are fused, and so what crosses memory between kernels, is decided without.
Bytes are those of `measured/roofline.py`, kinds and parts those of `measured/kernels.py`. Views/s
are those at which these bytes alone would take all of the bandwidth that the maker names. A
ResNet-50 compiles for a few CPU minutes.
"""

from __future__ import annotations

import collections
import importlib.util
import os
import time
from typing import Any

from absl import flags
from ml_collections import config_flags

from simclr_jax import entry, errors, flag_kinds

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file("config", "configs/imagenet.py", "Recipe.")
flags.DEFINE_integer("images", 64, "On the card, two views of each.", lower_bound=2)
flags.DEFINE(flag_kinds.Number(above=0), "bandwidth", 3.35, "TB/s; an H200 has 4.8.")
flags.DEFINE_boolean("debug", False, "Show the traceback of an error.")

PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")
# As XLA describes the card to itself (xla/backends/gpu/target_config/specs/h100_sxm.txtpb).
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448
  core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84978434048
  cuda_compute_capability { major: 9 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 2 }
runtime_version { major: 12 minor: 8 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
NOT_TUNED = {"xla_gpu_autotune_level": 0}


def main() -> None:
    """Compile the step and print its bytes by kind and by part of the step."""
    if not any(map(importlib.util.find_spec, PLUGINS)):
        raise errors.UserError(
            "XLA's compiler for GPUs is not installed: pip install jax-cuda12-plugin "
            "jax-cuda12-pjrt, of the version of JAX"
        )
    os.environ["JAX_PLATFORMS"] = "cpu"  # state and batch are described, never made
    from measured import kernels, roofline

    from simclr_jax import parallel
    from simclr_jax.planning import program
    from simclr_jax.planning.described import Case
    from simclr_jax.planning.footprint import GPU
    from simclr_jax.train.step import make_step

    config = FLAGS.config.copy_and_resolve_references()
    config.train.batch_size = FLAGS.images
    case, mesh = Case.of(config, 1), _mesh()
    stage = case.stage(mesh)
    step: Any = make_step(stage, mesh)
    state, batch = parallel.describe(mesh, case.state()), case.batch(case.images, mesh)
    start = time.perf_counter()
    compiled = step.lower(state, batch, stage.frozen).compile(NOT_TUNED)
    seconds, text = time.perf_counter() - start, compiled.as_text()
    flops = program.flops(program.read(step, state, batch))
    planned = case.at_any_batch().footprint(case.images, GPU).peak
    needed = roofline.of_compiled(compiled, 1)["memory_bytes"]
    moved, named = roofline.moved_by_instruction(text), kernels.names(text)
    speed = FLAGS.bandwidth
    views, whole = stage.views_per_image * FLAGS.images, sum(moved.values())

    print(f"{FLAGS.images} images, {views} views, compiled for an H100 in {seconds:.0f} s")
    print(f"work      {flops / 1e12:.3f} TFLOP, {flops / 1e9 / views:.2f} GFLOP a view")
    print(f"bytes     {whole / 1e9:.2f} GB, {whole / 1e6 / views:.1f} MB a view")
    print(f"bound     {views * speed * 1e12 / whole:.0f} views/s at {speed:g} TB/s")
    print(f"memory    {needed / 2**30:.3f} GiB compiled, {planned / 2**30:.3f} planned")
    print("\n| kind | kernels | GB | share |\n|---|---|---|---|")
    _table(moved, whole, lambda name: kernels.kind_of(name, name))
    print("\n| part | kernels | GB | share |\n|---|---|---|---|")
    _table(moved, whole, lambda name: kernels.part_of(named.get(name, "")))


def _table(moved: dict[str, float], whole: float, key: Any) -> None:
    groups: dict[str, list[float]] = collections.defaultdict(list)
    for name, size in moved.items():
        if size:
            groups[key(name)].append(size)
    for group, sizes in sorted(groups.items(), key=lambda item: -sum(item[1])):
        total = sum(sizes)
        print(f"| {group} | {len(sizes)} | {total / 1e9:.2f} | {total / whole:.3f} |")


def _mesh() -> Any:
    """Return a mesh of one card that need not exist."""
    import numpy as np
    from jax.experimental import topologies
    from jax.sharding import AxisType, Mesh

    from simclr_jax.parallel import AXIS

    card = topologies.get_topology_desc("h100", "cuda", target_config=H100, topology="1x1x1")
    return Mesh(np.array(card.devices), (AXIS,), axis_types=(AxisType.Auto,))


if __name__ == "__main__":
    entry.run(main)
