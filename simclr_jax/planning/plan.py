"""What a recipe needs on devices that are not there: memory, work, traffic, and what would fit."""

from __future__ import annotations

import dataclasses
import math
import sys
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from simclr_jax import alive, buckets, declaration, documents, files
from simclr_jax.errors import UserError
from simclr_jax.planning import ahead, devices
from simclr_jax.planning.ahead import Compiled
from simclr_jax.planning.any_batch import AnyBatch
from simclr_jax.planning.described import Case
from simclr_jax.planning.devices import GIB
from simclr_jax.planning.footprint import GPU, TPU, Footprint, Rules
from simclr_jax.planning.program import nbytes
from simclr_jax.stages import build
from simclr_jax.tables import table
from simclr_jax.train.stage import TrainState

ROUND = 8  # images on a device, in batches that are proposed

# Fields that make a step need less memory, and what they may be set to.
CHANGES: tuple[dict[str, str], ...] = (
    {"train__dtype": "bfloat16"},
    {"train__remat": "block"},
    {"train__dtype": "bfloat16", "train__remat": "block"},
)
MOST_PARTS = 256  # of a batch, that are proposed
BEFORE = "made before an epoch, without a step's work"


@dataclasses.dataclass(frozen=True)
class Asked:
    """What is to be planned for.

    Attributes:
      device: a name of `planning.devices.DEVICES`.
      count: devices.
      memory: bytes of each; None: as the device has.
      images: of the data set, where it is not here; 0: those of the recipe.
      classes: of such a data set.
      compile: ask the TPU's compiler; None: where it is installed.
    """

    device: str
    count: int
    memory: int | None = None
    images: int = 0
    classes: int = 0
    compile: bool | None = None

    @property
    def rules(self) -> Rules:
        """Return what the device does with arrays."""
        return TPU if devices.find(self.device).family else GPU

    @property
    def room(self) -> float:
        """Return the bytes of a device that a program may use."""
        return devices.usable(self.device, self.memory or devices.find(self.device).memory)


@dataclasses.dataclass(frozen=True)
class Choice:
    """A recipe, changed or not.

    Attributes:
      name: what is changed.
      peak: bytes on one device at the recipe's batch.
      largest: largest global batch that fits; 0: none.
    """

    name: str
    peak: int
    largest: int


def run(config: ConfigDict, asked: Asked, json_file: str = "") -> dict[str, Any]:
    """Plan a recipe, print it and return it.

    Raises:
      UserError: for whatever a user can put right.
    """
    json_file = files.expand_home(json_file) if json_file else ""
    _check(asked, json_file)
    compiles = _compiles(asked)
    if compiles:
        ahead.mesh(asked.device, asked.count)  # its complaints need not wait for the estimate
    with alive.during("planning", _say):
        case = Case.of(config, asked.count, asked.images, asked.classes)
        _say("reading the step of the recipe")
        steps = case.at_any_batch()
        plan = estimate(case, steps, asked)
    compiled = None
    if compiles:
        _say("compiling the step, which takes minutes")
        with alive.during("compiling the step", _say):
            compiled = case.compile(asked.device)
    if compiled:
        plan["compiled"] = dataclasses.asdict(compiled)
    print(report(case, asked, plan, compiled))
    if json_file:
        with files.explaining(json_file):
            documents.write(json_file, plan)
    return plan


def _compiles(asked: Asked) -> bool:
    """Tell whether to ask the TPU's compiler, which is left out where nobody insists on it.

    Raises:
      UserError: if it is insisted on and cannot be.
    """
    if not devices.find(asked.device).family:
        if asked.compile:
            raise UserError(f"--compile asks a TPU's compiler, --device is {asked.device}")
        return False
    if asked.count == 1:  # seen with libtpu 0.0.42.1, for every kind of TPU
        if asked.compile:
            raise UserError(
                "--compile with --devices=1: libtpu ends the process on a step of one chip; plan "
                "for more chips with as many images each, or leave --compile out"
            )
        return False
    return ahead.available() if asked.compile is None else asked.compile


def _check(asked: Asked, json_file: str) -> None:
    """Raise `UserError` for what need not wait for a plan."""
    if asked.classes and not asked.images:
        raise UserError(
            f"--classes is {asked.classes}, but only images that are not here take it: give "
            "--images=NUMBER too, or leave it out"
        )
    if files.is_local(json_file):
        if json_file:
            files.check_file(json_file, "--json")
        return
    with buckets.reaching(json_file):
        epath.Path(json_file).exists()


def estimate(case: Case, steps: AnyBatch, asked: Asked) -> dict[str, Any]:
    """Return all that is known without a compiler, bytes and operations of one device."""
    memory, flops = steps.footprint(case.images, asked.rules), steps.flops(case.images)
    views = case.images * case.views
    held = beside(case, memory, asked)
    return {
        "device": asked.device,
        "devices": asked.count,
        "room": asked.room,
        "batch_size": case.config.train.batch_size,
        "state": parts_of(case.state()),
        "beside": held,
        "between_epochs": between_epochs(case),
        "estimated": dataclasses.asdict(memory) | {"peak": fullest(case, memory, held)},
        "flops": flops,
        "flops_per_view": flops / views,
        "flops_of_views": case.view_flops(),
        "sent": case.sent,
        "collectives": steps.collectives(case.images),
        "choices": [dataclasses.asdict(choice) for choice in choices(case, steps, asked)],
    }


def beside(case: Case, memory: Footprint, asked: Asked) -> dict[str, int]:
    """Return the bytes of what a run holds on a device beside its step, whose memory this is."""
    found = {"waiting batches": case.waiting * memory.batch}
    if case.resident is not None:
        found["resident images"] = asked.rules.sizes(case.resident)
    return found


def between_epochs(case: Case) -> int:
    """Return the bytes that a method holds on a device before an epoch, when no step is under way.

    The program of a step does not know of them: the method declares them.
    """
    if case.config.stage != "pretrain":
        return 0
    said = declaration.find(case.config.method)
    return said.between_epochs(case.config, len(case.prepared.train))


def fullest(case: Case, memory: Footprint, held: dict[str, int]) -> int:
    """Return the bytes on one device at the fullest moment of a run: in a step, or before an epoch.

    Before an epoch a batch waits too.
    """
    made = between_epochs(case)
    before = memory.state + memory.batch + made if made else 0
    return max(memory.peak, before) + sum(held.values())


def parts_of(state: TrainState) -> dict[str, int]:
    """Return the bytes of each part of a state."""
    named = {
        "parameters": state.params,
        "statistics": state.batch_stats,
        "optimiser": state.opt_state,
        "averages, queues": state.extra,
    }
    sizes = {name: sum(map(nbytes, jax.tree.leaves(tree))) for name, tree in named.items()}
    return {name: size for name, size in sizes.items() if size}


def choices(case: Case, steps: AnyBatch, asked: Asked) -> list[Choice]:
    """Return the recipe as it is, and with all that makes it need less."""
    found = [_choice("as it is", case, steps, asked)]
    for change in CHANGES:
        if any(_get(case.config, name) == value for name, value in change.items()):
            continue
        _say(f"reading the step with {_flags(change)}")
        changed = case.changed(**change)
        found.append(_choice(_flags(change), changed, changed.at_any_batch(), asked))
    if found[0].peak > asked.room and (parts := _in_parts(case, asked, found[0])):
        found.append(parts)
    return found


def _in_parts(case: Case, asked: Asked, whole: Choice) -> Choice | None:
    """Return the recipe with its batch in as few parts as fit, by twos; None if that is not so."""
    fewest = 2 * case.config.train.accumulate
    while fewest < min(MOST_PARTS, whole.peak / asked.room):  # a part needs its share or more
        fewest *= 2
    for parts in (fewest, 2 * fewest, 4 * fewest):
        change = {
            "train__accumulate": parts,
            "bn__groups": math.lcm(max(case.config.bn.groups, 1), parts),
        }
        _say(f"reading the step with {_flags(change)}")
        try:
            changed = case.changed(**change)
            found = _choice(_flags(change), changed, changed.at_any_batch(), asked)
        except UserError:  # the images of a device are not so many parts, or the method takes none
            return None
        if found.peak <= asked.room:
            return found
    return None


def _say(line: str) -> None:
    """Say what is going on, apart from the plan."""
    print(line, file=sys.stderr, flush=True)


def _get(config: ConfigDict, name: str) -> Any:
    group, field = name.split("__")
    return config[group][field]


def _flags(change: dict[str, Any]) -> str:
    return " ".join(f"--config.{n.replace('__', '.')}={value}" for n, value in change.items())


def _choice(name: str, case: Case, steps: AnyBatch, asked: Asked) -> Choice:
    _say(f"looking for the largest batch {name}")
    memory = steps.footprint(case.images, asked.rules)
    held = beside(case, memory, asked)
    room = asked.room - held.get("resident images", 0)
    most = steps.most_images(room, asked.rules, case.waiting)
    unit = math.lcm(ROUND, steps.parts)
    most -= most % unit if most > unit else 0
    if memory.state + between_epochs(case) > room:
        most = 0
    return Choice(name, fullest(case, memory, held), most * case.devices)


def report(case: Case, asked: Asked, plan: dict[str, Any], compiled: Compiled | None) -> str:
    """Return a plan as a person reads it."""
    c, device = case.config, devices.find(asked.device)
    views = case.images * case.views
    held = (asked.memory or device.memory) / GIB
    lines = [
        f"network   ResNet-{c.model.depth} x {c.model.width:g}, views of {_sides(c)} pixels, "
        f"{c.train.dtype}, remat {c.train.remat}",
        f"devices   {asked.count} x {asked.device}, {held:g} GiB each, {asked.room / GIB:.1f} of "
        "them for a program",
        f"batch     {c.train.batch_size} images, {case.images} ({views} views) on a device"
        + (f", in {c.train.accumulate} parts" if c.train.accumulate > 1 else ""),
        "",
        _memory_table(plan, compiled),
        "",
        f"work      {plan['flops'] / 1e12:.2f} TFLOP on a device in a step, "
        f"{plan['flops_per_view'] / 1e9:.2f} GFLOP for a view (convolutions and matrix products)",
        f"          {1e3 * plan['flops'] / device.flops:.1f} ms at the {device.flops / 1e12:.0f} "
        "TFLOP/s of bfloat16 that the maker names; expect a half of that speed or less",
        f"          {plan['flops_of_views'] / plan['flops']:.1%} of it makes the views",
        *_accessed(compiled, views, c.train.accumulate),
        f"input     {plan['sent'] / 1e6:.1f} MB from the host to a device in a step, "
        f"{plan['sent'] / case.images / 1e3:.1f} kB an image{_form_of_images(c)}",
        "",
        _traffic_table(plan, compiled),
        "",
        _choices_table(asked, plan),
    ]
    return "\n".join(lines)


def _sides(c: ConfigDict) -> str:
    """Return the sides of views, with how many there are of each where they differ."""
    counts: dict[int, int] = {}
    for policies in build.policies(c).values():
        for policy in policies:
            counts[policy.size] = counts.get(policy.size, 0) + 1
    if len(counts) == 1:
        return str(*counts)
    return " and ".join(f"{side} ({counts[side]})" for side in sorted(counts, reverse=True))


def _form_of_images(c: ConfigDict) -> str:
    if c.data.resident:
        return " (its number: the device keeps all images)"
    forms = {
        "device": "bytes",
        "canvas": f"bytes on a canvas of {c.augment.canvas} x {c.augment.canvas} pixels",
        "split": "bytes of crops",
        "host": "views in float32",
    }
    return f", {forms[c.augment.placement]}"


def _accessed(compiled: Compiled | None, views: int, parts: int) -> list[str]:
    """Return a line about the bytes of a compiled step, of which one in parts counts only some."""
    if compiled is None or compiled.memory is None or parts > 1:
        return []
    found = compiled.accessed
    return [
        f"bytes     {found / 1e9:.2f} GB in a step as compiled, {found / 1e6 / views:.0f} MB a view"
    ]


def _gib(size: float) -> str:
    return f"{size / GIB:.3f}"


def _memory_table(plan: dict[str, Any], compiled: Compiled | None) -> str:
    found, held = plan["estimated"], plan["beside"]
    sizes = plan["state"] | {
        "batch": found["batch"],
        "activations, gradients, work": found["temporary"],
        **held,
        BEFORE: plan["between_epochs"],
        "peak": found["peak"],
    }
    sizes = {name: size for name, size in sizes.items() if size or name != BEFORE}
    rows, header = [[name, _gib(size)] for name, size in sizes.items()], ["GiB on one device"]
    if compiled:
        known = _compiled_cells(plan, compiled)
        rows = [[*row, known.get(row[0], "")] for row in rows]
    return table([*header, "estimated", "compiled"][: len(rows[0])], rows)


def _compiled_cells(plan: dict[str, Any], compiled: Compiled) -> dict[str, str]:
    """Return what the compiler says of a step, and what a run holds beside it, by row."""
    memory, held = compiled.memory, plan["beside"]
    if memory is None:  # and what it then says may be of temporaries alone
        return {"peak": f"{_gib(compiled.needed)}, does not fit"}
    peak = compiled.needed + sum(held.values())
    fits = "" if peak <= plan["room"] else ", does not fit"
    sizes = {"batch": memory.batch, "activations, gradients, work": memory.temporary, **held}
    return {name: _gib(size) for name, size in sizes.items()} | {"peak": _gib(peak) + fits}


def _traffic_table(plan: dict[str, Any], compiled: Compiled | None) -> str:
    found = compiled.collectives if compiled else {}
    kinds = sorted(plan["collectives"].keys() | found.keys())
    header = ["MB that a device receives in a step", "estimated"]
    rows = [[kind, f"{plan['collectives'].get(kind, 0) / 1e6:.3f}"] for kind in kinds]
    if found:
        header.append("compiled")
        times = compiled.exchanges if compiled else {}
        rows = [
            [*row, f"{found.get(row[0], 0) / 1e6:.3f} in {times.get(row[0], 0)}"] for row in rows
        ]
    return table(header, rows)


def _choices_table(asked: Asked, plan: dict[str, Any]) -> str:
    rows, batch = [], plan["batch_size"]
    for choice in plan["choices"]:
        fits = "fits" if choice["peak"] <= plan["room"] else "does not fit"
        largest = str(choice["largest"] or "none fits")
        rows.append((choice["name"], _gib(choice["peak"]), fits, largest))
    most = plan["choices"][0]["largest"] // asked.count
    lines = [table(("estimated", "GiB", f"batch {batch}", "largest batch"), rows)]
    if 0 < most * asked.count < batch:
        lines.append(f"as it is, batch {batch} needs {-(-batch // most)} such devices")
    if "accumulate" in plan["choices"][-1]["name"]:
        lines.append("in parts, images are normalised by groups of a part, not of the batch")
    return "\n".join(lines)
