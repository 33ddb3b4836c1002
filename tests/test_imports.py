"""Who may import whom, read from the source of every module."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

import simclr_jax

PACKAGE = Path(simclr_jax.__file__).parent

# From the doors down. A module may import modules of its own line and of the lines below.
LAYERS = (
    ("__main__", "command"),
    (
        *("main", "convert", "linear_probe", "transfer", "embed", "search", "report", "plan"),
        *("list_recipes", "list_fields", "export", "pack", "doctor"),
    ),
    ("api",),
    ("pipeline",),
    ("judging", "embedding", "reporting", "planning", "interop", "checking"),
    ("stages",),
    ("methods",),
    ("frame",),
    ("train", "evaluate"),
    ("data", "augment", "models", "losses", "optim"),
    (
        "validation",
        "view_rules",
        "fields",
        "background",
        "cpu_devices",
        "recipes",
        "records",
        "segments",
        "tables",
        "errors",
        "entry",
        "flag_kinds",
        "usage",
        "completion",
        "shipped",
        "extras",
        "given_data",
        "field_texts",
        "processes",
        "parallel",
        "files",
        "closing",
        "documents",
        "archives",
        "buckets",
        "unlabelled",
        "alive",
        "declaration",
    ),
)
DEPTH = {name: depth for depth, names in enumerate(LAYERS) for name in names}

# These take plain arguments and work alone as a library: no recipes, no files.
LIBRARIES = ("models", "losses", "optim", "augment", "evaluate")
NOT_FOR_LIBRARIES = {
    "fields",
    "recipes",
    "records",
    "validation",
    "view_rules",
    "entry",
    "shipped",
    "files",
    "documents",
    "archives",
    "buckets",
    "data",
}
TENSORFLOW = ("tensorflow", "tensorflow_datasets")
WITH_TENSORFLOW = {"augment", "data", "interop"}  # and there inside functions only


def imported(source: str, module_level_only: bool = False) -> set[str]:
    """Return the dotted names that a module imports, `from a import b` as both `a` and `a.b`."""
    found, todo = set(), [ast.parse(source)]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        if not (module_level_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
            todo += ast.iter_child_nodes(node)
    return found


def parts(source: str) -> set[str]:
    """Return the parts of the package, such as `models`, that a module imports."""
    return {name.split(".")[1] for name in imported(source) if name.startswith("simclr_jax.")}


def wrong(part: str, source: str) -> set[str]:
    """Return what a module of `part` imports and must not."""
    found = {name for name in parts(source) if DEPTH[name] < DEPTH[part]}
    if part in LIBRARIES:
        found |= parts(source) & NOT_FOR_LIBRARIES
        found |= {name for name in imported(source) if name.split(".")[0] == "ml_collections"}
    early = imported(source, module_level_only=part in WITH_TENSORFLOW)
    return found | {name for name in early if name.split(".")[0] in TENSORFLOW}


def circle(arrows: Mapping[str, set[str]]) -> list[str]:
    """Return the names on one way round through `arrows`, or nothing if there is none."""
    done: set[str] = set()

    def walk(name: str, way: list[str]) -> list[str]:
        if name in way:
            return way[way.index(name) :]
        for to in sorted(arrows.get(name, set()) - done):
            if found := walk(to, [*way, name]):
                return found
        done.add(name)
        return []

    return next((found for name in sorted(arrows) if (found := walk(name, []))), [])


BENCHMARKS = sorted((PACKAGE.parent / "benchmarks").rglob("*.py"))
MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def part_of(path: Path) -> str:
    return path.parts[0].removesuffix(".py")


def test_every_place_has_a_layer_and_every_layer_a_place():
    assert set(DEPTH) == {part_of(path) for path in MODULES if path != Path("__init__.py")}


def test_no_way_leads_round():
    """Neither between rooms nor between modules: each can be read after those it imports."""
    rooms, modules = {}, {}
    for path in MODULES:
        source = (PACKAGE / path).read_text()
        rooms.setdefault(part_of(path), set()).update(parts(source) - {part_of(path)})
        name = ".".join(("simclr_jax", *path.with_suffix("").parts)).removesuffix(".__init__")
        modules[name] = imported(source, module_level_only=True) - {name}
    assert not circle(rooms)
    assert not circle({name: to & modules.keys() for name, to in modules.items()})


@pytest.mark.parametrize(
    "arrows, found",
    [
        ({"a": {"b"}, "b": {"c"}, "c": set()}, []),
        ({"a": {"b", "c"}, "b": {"c"}, "c": {"b"}}, ["b", "c"]),
        ({"a": {"b"}, "b": {"c"}, "c": {"a"}}, ["a", "b", "c"]),
    ],
)
def test_circles_are_seen(arrows, found):
    assert circle(arrows) == found


@pytest.mark.parametrize("path", [path for path in MODULES if path != Path("__init__.py")], ids=str)
def test_imports_go_down(path):
    part = part_of(path)
    assert not wrong(part, (PACKAGE / path).read_text())


@pytest.mark.parametrize(
    "part, source, found",
    [
        ("train", "from simclr_jax import stages", {"stages"}),
        ("train", "def f():\n    import simclr_jax.stages.build", {"stages"}),
        ("data", "from simclr_jax.train.timetable import Timetable", {"train"}),
        ("files", "from simclr_jax import errors, main", {"main"}),
        ("models", "from simclr_jax import recipes", {"recipes"}),
        ("augment", "from simclr_jax import data, errors", {"data"}),
        ("optim", "import ml_collections", {"ml_collections"}),
        ("data", "if True:\n    import tensorflow as tf", {"tensorflow"}),
        ("data", "def f():\n    import tensorflow as tf", set()),
        ("train", "def f():\n    import tensorflow as tf", {"tensorflow"}),
        ("stages", "from simclr_jax.train import loop\nimport jax", set()),
        ("evaluate", "from simclr_jax.errors import UserError", set()),
    ],
)
def test_the_rule_sees(part, source, found):
    assert {name.split(".")[0] for name in wrong(part, source)} == found


def test_the_main_job_never_loads_tensorflow():
    """Nor does any library it uses: that would cost ten seconds at every start."""
    program = "import sys, simclr_jax.stages.pretrain; print('tensorflow' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=True)
    assert output.stdout.strip() == b"False"


def test_methods_are_found_in_one_place():
    """Whoever finds modules by name can import upwards unseen, so one file may, below the top."""
    finding = [path for path in MODULES if "import_module" in (PACKAGE / path).read_text()]
    assert finding == [Path("command.py"), Path("declaration.py")]


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.name)
def test_benchmarks_run_from_anywhere(path):
    """`python benchmarks/NAME.py` finds the package, which is installed, and nothing beside it."""
    tops = {name.split(".")[0] for name in imported(path.read_text())}
    assert not tops & {"configs", "tests", "benchmarks"}


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.name)
def test_no_flag_of_a_benchmark_is_defined_twice(path):
    """Two that it imports, or it and one, would end it before it begins."""
    by_stem = {other.stem: other for other in BENCHMARKS}
    seen, left, flags = set(), [path], []
    while left:
        if (file := left.pop()) not in seen:
            seen.add(file)
            text = file.read_text()
            flags += re.findall(r'^flags\.DEFINE\w*\([^"]*"(\w+)"', text, re.MULTILINE)
            ours = {name for name in imported(text) if not name.startswith("simclr_jax")}
            names = {part for name in ours for part in name.split(".")}
            left += [by_stem[name] for name in names & {*by_stem}]
    assert sorted(flags) == sorted({*flags})
