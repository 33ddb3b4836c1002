"""The shipped recipes as text, with every field resolved, to be kept beside the tests.

    python tests/recipes/freeze.py

rewrites `tests/recipes/frozen/`, one file for each recipe of `configs/` and one for the defaults.
A section is a recipe with one choice of arguments: the fields in which it differs from the one it
is compared with, sorted, and what they come to in steps and rates.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from ml_collections import ConfigDict

ROOT = Path(__file__).parents[2]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from simclr_jax import declaration, recipes  # noqa: E402
from simclr_jax.pipeline import recipe as pipeline  # noqa: E402
from simclr_jax.train import timetable  # noqa: E402

FROZEN = Path(__file__).parent / "frozen"
COMMAND = "python tests/recipes/freeze.py"
DEFAULTS = "defaults"

# For each recipe the arguments it is frozen with: each that it knows, and those that interact.
VARIANTS: dict[str, tuple[str, ...]] = {
    "autoencoder": ("", "cifar10"),
    "byol": (
        "",
        *("cifar10", "imagenet", "imagenet,epochs=40", "imagenet,epochs=100"),
        *("imagenet,epochs=300", "imagenet,local=6"),
    ),
    "cifar10": ("", "strong", "official=tf1", "official=tf2", "local=6"),
    "colourisation": ("", "imagenet", "imagenet,regression"),
    "context_encoder": ("", "cifar10", "imagenet"),
    "contrastive": (
        "",
        *("loss=decoupled", "loss=debiased", "loss=margin"),
        *("cifar10", "cifar10,loss=margin", "cifar10,loss=decoupled"),
        *("cifar10,loss=decoupled_weighted", "cifar10,loss=debiased"),
        *("cifar10,loss=hard_negative", "local=4"),
    ),
    "denoising_autoencoder": ("", "cifar10"),
    "counting": ("", "cifar10", "imagenet"),
    "digits": ("", "local=4"),
    "distill": ("", "self", "epochs=100"),
    "distill_imagenet": ("", "depth=152,width=3,sk", "self", "epochs=100"),
    "exemplar": ("", "triplet", "cifar10", "imagenet"),
    "finetune": (
        "",
        *("tap=1", "frozen", "scratch", "sgd", "epochs=30"),
        *("official=tf1", "official=tf2", "frozen,official=tf1", "frozen,official=tf2"),
    ),
    "finetune_cifar10": (
        "",
        *("labels=1%,tap=1", "linear", "scratch"),
        *("official=tf1", "official=tf2", "linear,official=tf1", "linear,official=tf2"),
    ),
    "finetune_imagenet": (
        "",
        *("labels=10%", "labels=100%", "labels=100%,tap=1,epochs=60", "large", "v1", "linear"),
        *("official=tf1", "official=tf2", "linear,official=tf1", "linear,official=tf2"),
    ),
    "fnc": ("", "cifar10", "imagenet", "no_memory,support=0", "imagenet,epochs=100,elimination"),
    "folder": ("",),
    "imagenet": (
        "",
        *("paper", "width=2", "epochs=200", "small_batch=512", "one_gpu"),
        *("paper,width=4,epochs=400", "official=tf1", "official=tf2", "local=6"),
    ),
    "imagenet_v2": (
        "",
        *("depth=152,width=3,sk", "memory", "epochs=200", "official=tf1", "official=tf2"),
    ),
    "instdisc": ("", "cifar10", "imagenet"),
    "jigsaw": ("", "cifar10", "imagenet"),
    "memory": ("",),
    "moco": ("", "cifar10", "v1", "v2", "v2,epochs=800", "v2,local=6"),
    "pcl": ("", "imagenet", "imagenet,v1"),
    "relative_patch": ("", "cifar10", "imagenet", "imagenet,doersch"),
    "rotation": ("", "cifar10"),
    "simsiam": ("", "cifar10", "imagenet", "imagenet,batch=256,epochs=200", "cifar10,local=6"),
    "speedrun_cifar10": ("",),
    "supcon": ("", "cifar10", "cifar10,local=6"),
    "v2_pipeline_cifar10": ("", "draws=1,small,path=images", "draws=1,no_teacher,seed=3"),
    "v2_pipeline_digits": ("", "draws=1,seed=3"),
}

# Training images that lengths are worked out for: of a data set, or as many as one might have.
EXAMPLES = {"digits": 1437, "cifar10": 50_000, "imagenet2012": 1_281_167}
MANY = 10_000

Lines = dict[str, str]  # by field


def shipped() -> list[str]:
    """Return the names of all recipes in `configs/`."""
    return sorted(path.stem for path in (ROOT / "configs").glob("*.py"))


def load(name: str) -> ModuleType:
    """Import a recipe as the doors do, by its path."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "configs" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def resolved(name: str, argument: str = "") -> ConfigDict:
    """Return a shipped recipe."""
    get = load(name).get_config
    return get(argument) if argument else get()


def leaves(config: ConfigDict | dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield the dotted name and the value of each field that is no group."""
    fields = config.to_dict() if isinstance(config, ConfigDict) else config
    for name, value in fields.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def as_lines(config: ConfigDict | dict) -> Lines:
    """Return the text of each field; what a recipe leaves open is None."""
    return {name: repr(value) for name, value in leaves(config)}


def derived(c: ConfigDict) -> Lines:
    """Return what a recipe comes to, where it says how large a batch is and how long it trains."""
    if c.train.batch_size is None or c.train.epochs is None:
        return {}
    examples = EXAMPLES.get("digits" if c.data.source == "digits" else c.data.name, MANY)
    if c.labels.use.endswith("%") and (c.stage == "finetune" or c.distill.images == "labelled"):
        examples = int(examples * float(c.labels.use[:-1]) / 100)  # about: drawn class by class
    t = timetable.make(c, examples)
    return {
        "-> with images": str(examples),
        "-> steps": str(t.total_steps),
        "-> warm-up": str(t.warmup_steps),
        "-> peak rate": f"{t.peak_rate:.6g}",
        "-> evaluated every": str(t.evaluate_every),
    }


def changes(lines: Lines, other: Lines) -> list[str]:
    """Return the fields in which a recipe differs from another, which it may lack."""
    found = [f"{name} = {value}" for name, value in lines.items() if other.get(name) != value]
    gone = {_missing(name, lines) for name in other.keys() - lines.keys()}
    return sorted([*found, *(f"{name} is not there" for name in gone)])


def _missing(name: str, lines: Lines) -> str:
    """Return the largest group with this field of which `lines` have nothing."""
    parts = name.split(".")
    groups = [".".join(parts[:i]) for i in range(1, len(parts))]
    return next((g for g in groups if not any(f.startswith(f"{g}.") for f in lines)), name)


def section(title: str, lines: Lines, other: Lines, compared: str) -> str:
    """Return a title and what differs from a recipe called `compared`."""
    return "\n".join([f"[{title}] beside {compared}", *changes(lines, other)]) + "\n"


def of_defaults() -> str:
    """Return every field of the defaults, and what each method changes or adds."""
    first = as_lines(recipes.base())
    parts = ["\n".join([f"[{declaration.DEFAULT}]", *changes(first, {})]) + "\n"]
    for method in declaration.known():
        if method != declaration.DEFAULT:
            lines = as_lines(recipes.base(method))
            parts.append(section(method, lines, first, declaration.DEFAULT))
    return "\n".join(parts)


def of_recipe(name: str) -> str:
    """Return the text of a shipped recipe: as it is, and then with each choice of arguments."""
    first, *others = VARIANTS[name]
    whole = {argument: resolved(name, argument) for argument in (first, *others)}
    if whole[first].stage == pipeline.STAGE:
        return "\n".join(of_pipeline(f"{name}:{a}", c) for a, c in whole.items())
    lines = {argument: as_lines(c) | derived(c) for argument, c in whole.items()}
    method = whole[first].get("method", declaration.DEFAULT)
    plain = as_lines(recipes.base(method))
    parts = [section(name, lines[first], plain, f"the defaults of {method}")]
    parts += [section(f"{name}:{a}", lines[a], lines[first], name) for a in others]
    return "\n".join(parts)


def of_pipeline(title: str, c: ConfigDict) -> str:
    """Return the text of a pipeline: its own fields, and each run beside one like it."""
    own = {name: value for name, value in c.to_dict().items() if name != "runs"}
    for field in ("table", "differences", "order"):
        own |= {f"{field}[{i:02}]": entry for i, entry in enumerate(own.pop(field))}
    parts = ["\n".join([f"[{title.rstrip(':')}]", *changes(as_lines(own), {})]) + "\n"]
    seen: dict[str, Lines] = {"the defaults": as_lines(recipes.base())}
    for name in c.order:
        lines = as_lines(c.runs[name]) | derived(c.runs[name])
        counts = {other: len(changes(lines, seen[other])) for other in seen}
        beside = min(seen, key=lambda other: counts[other])
        parts.append(section(f"run {name}", lines, seen[beside], beside))
        seen[name] = lines
    return "\n".join(parts)


def text(name: str) -> str:
    """Return the text of a recipe, or of the defaults."""
    return of_defaults() if name == DEFAULTS else of_recipe(name)


def main() -> None:
    """Write all files, and remove those of recipes that are gone."""
    FROZEN.mkdir(exist_ok=True)
    for old in FROZEN.glob("*.txt"):
        old.unlink()
    for name in (DEFAULTS, *shipped()):
        (FROZEN / f"{name}.txt").write_text(text(name))


if __name__ == "__main__":
    main()
