"""Eight CPU devices for every test, set before JAX is imported, and the float64 split.

The cheap compiler settings halve compile time; no test asserts a timing.
Tests marked `x64` run only under JAX_ENABLE_X64=1 and the others only without it: `make test`
runs both processes. A file, whose tests share fixtures and compiled programs, goes to one of the
workers (`--dist loadgroup`), and so do all files that look at one costly run.
"""

import gc
import os
import sys
import tempfile
from importlib import metadata
from pathlib import Path

import pytest

os.environ["JAX_PLATFORMS"] = "cpu"
FLAGS = [
    os.environ.get("XLA_FLAGS", ""),
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
]
if metadata.version("jaxlib").startswith("0.10."):
    # Fused loops straight to LLVM and not by way of MLIR, which takes twice as long to compile.
    # Later versions have no other way, and a flag that XLA does not know ends the process.
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join(FLAGS)
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / "simclr_jax_test_cache")
)
# What a user keeps: a key by which files of embeddings are known again, indices of TFRecords.
os.environ["XDG_CACHE_HOME"] = str(Path(tempfile.gettempdir()) / "simclr_jax_test_home")
# Every program: the smallest takes 50 ms to compile, 4 ms to write, and every run makes it again.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

# Tracing makes so many objects that Python's default, a search for garbage at every 700th, takes a
# tenth of the processor time of a test.
gc.set_threshold(50_000, 20, 100)

# Named here, not beside the tests, for the controller of pytest-xdist: it collects no tests.
sys.path.append(str(Path(__file__).parent / "parity"))
pytest_plugins = ["parity_table"]

# The longest first; what can be dealt out test by test last, so that workers end together.
ORDER = (
    "parity/test_trajectory.py",
    "parity/test_trajectory_finetune.py",
    "parity/test_model.py",
    "e2e",
    "stages",
    "train",
    "",
    "parity",
)

SHARED = {"finished", "piped", "tfds_root"}  # session fixtures that take long to make

X64 = os.environ.get("JAX_ENABLE_X64", "0").lower() in ("1", "true")


def pytest_report_header():
    here, there = ("float64", "others") if X64 else ("others", "float64")
    return f"simclr_jax: this process runs the {here} tests; `make test` also runs the {there}"


def pytest_ignore_collect(collection_path):
    """Leave files without a float64 test unread in the float64 process: imports take seconds."""
    if X64 and collection_path.name.startswith("test_"):
        return "mark.x64" not in collection_path.read_text() or None
    return None


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(config, items):
    parts: dict[bool, list] = {True: [], False: []}
    for item in items:
        parts[bool(item.get_closest_marker("x64")) == X64].append(item)
    config.hook.pytest_deselected(items=parts[False])
    items[:] = sorted(parts[True], key=_rank)  # stable: files stay together
    dear = {item.path: name for item in items for name in SHARED & {*item.fixturenames}}
    for item in items:
        if item.path.parent.name != "parity":  # whose tests share nothing
            group = dear.get(item.path, item.path.stem)  # names are unique
            item.add_marker(pytest.mark.xdist_group(group))


def _rank(item) -> int:
    path = item.path.relative_to(Path(__file__).parent)
    names = (path.as_posix(), path.parts[0])
    return next((i for i, part in enumerate(ORDER) if part in names), ORDER.index(""))
