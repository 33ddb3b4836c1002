"""Who reads the files of a run that `damages.py` damages, by the functions that the doors call."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from simclr_jax import recipes
from simclr_jax.data import decode
from simclr_jax.embedding import embed, search
from simclr_jax.judging import linear_probe, results, transfer
from simclr_jax.judging.datasets import Wanted
from simclr_jax.planning import plan
from simclr_jax.reporting import record, report, run_sections
from simclr_jax.stages import run as runs
from simclr_jax.stages.encoder import Encoder
from simclr_jax.train import saved

Numbers = dict[str, Any]
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 12, 12, 3)).astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class Read:
    """What a reader found.

    Attributes:
      numbers: by name.
      step: of the checkpoint that they are of.
      said: lines.
      beside: numbers that may be missing without a word, but not be others.
    """

    numbers: Numbers
    step: int = 0
    said: tuple[str, ...] = ()
    beside: Numbers = dataclasses.field(default_factory=dict)


def tiny() -> Any:
    """Return the recipe of `tests/e2e/tiny.py`; other folders have modules of that name."""
    return runpy.run_path(str(Path(__file__).parents[1] / "e2e" / "tiny.py"))["get_config"]()


def notes(said: list[str]) -> tuple[str, ...]:
    """Return the lines that say what is not as it should be."""
    return tuple(line for line in said if line.startswith("note"))


def weights(run: Path) -> tuple[int, str]:
    """Return step and digest of the newest checkpoint."""
    read = saved.read(str(run))
    known = hashlib.sha256()
    for name, leaf in sorted(read.leaves.items()):
        known.update(name.encode() + np.ascontiguousarray(leaf).tobytes())
    return read.step, known.hexdigest()


def curves(root: Path, run: str = "run") -> Read:
    """Read all that a report takes from files, and count what was left out."""
    one = record.read(str(root / run))
    numbers: Numbers = {f"recipe {name}": value for name, value in one.recipe.items()}
    for name, curve in one.curves.items():
        steps = zip(curve.steps.tolist(), curve.values.tolist(), strict=True)
        numbers |= {f"{name} at {step:g}": repr(value) for step, value in steps}
    for result in one.results:
        numbers |= record.flatten(result, f"result {result['name']} ")
    for name, arrays in one.outputs.items():
        numbers |= {f"array {name} {key}": x.tobytes() for key, x in arrays.items()}
    numbers |= record.flatten(one.summary or {}, "summary ")
    pixels = one.views and decode.decode(one.views).tobytes()  # whatever follows them in the file
    numbers |= {"views": pixels, "devices": one.devices, "saved": str(one.saved)}
    numbers["unreadable"] = one.unreadable  # at least so many, which is true of fewer
    no_picture = re.findall("There is no [^<]*", str(run_sections.views([one])))
    return Read(numbers, 0, (*one.damaged, *no_picture))


def page(root: Path) -> Read:
    """Write a report: the numbers that it has computed, and the problems that stand in it."""
    said: list[str] = []
    one = record.read(str(root / "run"))
    found = report._examine(one, said.append)
    text = report._page([one], {one.name: found})
    assert "Traceback" not in text
    said += re.findall(r'<li class="problem">([^<]*)<', text)
    if isinstance(found, str):
        return Read({}, 0, (*said, found))
    numbers: Numbers = {
        f"{t} {n}": x for t, p in found.pairs.items() for n, x in p.indicators.items()
    }
    numbers["points"] = found.points.tobytes() if found.points is not None else b""
    if found.judged:
        numbers[f"counts of {found.judged.what}"] = found.judged.counts.tobytes()
    near = [(tile.said, tile.similarity) for row in found.neighbours for tile in row]
    return Read(numbers | {"near": str(near)}, saved.split(found.checkpoint)[1] or 0, tuple(said))


def loaded(root: Path) -> Read:
    """Encode images by the Python API."""
    encoder = Encoder.of(saved.read(str(root / "run"), "run"))
    found = {tap: encoder(IMAGES, tap).tobytes() for tap in ("h", "z")}
    return Read(found, encoder.step)


def embedded(root: Path) -> Read:
    """Embed the run's own images."""
    said: list[str] = []
    out = root / "again.npz"
    embed.run(embed.Options(str(root / "run"), str(out)), said.append)
    with np.load(out) as archive:
        about = json.loads(str(archive["about"]))
        rows = zip(archive["names"].tolist(), archive["features"], strict=True)
        return Read({name: x.tobytes() for name, x in rows}, about["step"], notes(said))


def probed(root: Path, tap: str = "h") -> Read:
    """Score the run's features by kNN."""
    said: list[str] = []
    options = linear_probe.Options(solvers=("knn",), taps=(tap,))
    options = dataclasses.replace(
        options, settings=dataclasses.replace(options.settings, knn=((3, None),))
    )
    linear_probe.run([str(root / "run")], Wanted(), options, said.append)
    found = results.read(results.epath.Path(root / "run" / "results" / f"knn3-{tap}.json"))
    step = found["checkpoint"]["step"]
    return Read({"row": [line for line in said if line.startswith("knn3")]}, step, notes(said))


def searched(suffix: str) -> Callable[[Path], Read]:
    """Return what searches a file of embeddings."""

    def read(root: Path) -> Read:
        said: list[str] = []
        options = search.Options(str(root / f"all{suffix}"), query=["a/0.png"], k=5)
        search.run(options, said.append)
        return Read(
            {"said": [line for line in said if not line.startswith("note")]}, 0, notes(said)
        )

    return read


def transferred(root: Path) -> Read:
    """Score the run's features on other images."""
    said: list[str] = []
    transfer.run(str(root / "run"), sets=(), others=[str(root / "other")], say=said.append)
    (file,) = (root / "run" / "results").glob("transfer-other-??????.json")
    found = results.read(results.epath.Path(file))
    numbers = record.flatten({name: found[name] for name in ("scores", "level", "protocol")})
    arrays = results.read_arrays(root / "run", found)
    numbers |= {name: array.tobytes() for name, array in arrays.items()}
    return Read(numbers, found["checkpoint"]["step"], notes(said))


def labelled(stage: str, root: Path) -> Any:
    """Return the recipe of a short run on labels that starts from the run."""
    config = tiny()
    with config.unlocked():
        config.stage, config.data.source, config.loss.temperature = stage, None, 0.1
        config.eval.probe = config.eval.knn = False
        config["init" if stage == "finetune" else "distill"].update(
            {"run" if stage == "finetune" else "teacher": str(root / "run")}
        )
        recipes.crop_and_flip(config)
    return config


def planned(root: Path) -> Read:
    """Plan a fine-tuning that starts from the run."""
    config = labelled("finetune", root)
    with contextlib.redirect_stdout(io.StringIO()):
        found = plan.run(config, plan.Asked("h100", 1, images=60, classes=2, compile=False))
    return Read({"plan": json.dumps(found, sort_keys=True)})


def started(stage: str, root: Path) -> Read:
    """Train for two steps from the run, or taught by it."""
    config, out = labelled(stage, root), io.StringIO()
    with config.unlocked():
        config.train.steps, config.eval.compare = 2, False
    place = root / f"{stage}_of_it"
    with contextlib.redirect_stdout(out):
        assert runs.run(config, str(place)) == 0
    source = saved.read(str(place)).config
    step = saved.split(source.init.run or source.distill.teacher)[1]
    return Read({"weights": weights(place)}, step or 0, notes(out.getvalue().splitlines()))


def tuned(root: Path) -> Read:
    """Fine-tune from the run."""
    return started("finetune", root)


def taught(root: Path) -> Read:
    """Distill from the run."""
    return started("distill", root)
