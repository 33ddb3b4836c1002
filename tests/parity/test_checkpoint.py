"""Converted official checkpoints hold the saved weights and give the recorded outputs."""

from __future__ import annotations

import dataclasses
import tarfile
from collections.abc import Iterator
from pathlib import Path

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sections
import steps

from simclr_jax.frame import modules
from simclr_jax.interop import convert as convert_stage
from simclr_jax.interop import official_names as official
from simclr_jax.train import saved

pytest.importorskip("tensorflow", reason="official checkpoints are read with TensorFlow")

TOLERANCE = 1e-4  # of outputs, relative to the largest: two float32 programs
EXACT = 1e-7  # of weights, which are copied; digests are sums in float64


def sources() -> list:
    """Return (recording, what to convert, under which prefix its outputs are) of all recordings."""
    found = []
    for parameter in golden.cases("checkpoint"):
        recording = parameter.values[0]
        if recording is None:
            return [pytest.param(None, None, None, marks=parameter.marks, id="none")]
        found += [
            pytest.param(recording, source, prefix, id=f"{recording.path.stem}-{source.name}")
            for source, prefix in to_convert(recording)
        ]
    return found


def to_convert(recording: golden.Recording) -> Iterator[tuple[Path, str]]:
    folder = recording.path.parent / recording.settings["folder"]
    yield folder, "eval"
    if recording.settings.get("saved_model"):
        yield folder / "saved_model.tar.gz", "eval"
    hub = recording.path.parent / folder.name.replace("checkpoint", "hub", 1)
    if hub.exists():
        yield hub, "hub"


def convert(recording: golden.Recording, source: Path, tmp_path: Path) -> saved.Saved:
    """Convert; return the run."""
    if source.suffix == ".gz":
        with tarfile.open(source) as packed:
            packed.extractall(tmp_path, filter="data")
        (source,) = (path.parent for path in tmp_path.rglob("saved_model.pb"))
    # A hub module applies its classifier to h, whatever it was trained on, and has no head.
    tap = sections.tap(recording)
    if source.name.startswith("hub") or not classes(recording):
        tap = None
    convert_stage.run(str(source), str(tmp_path / "run"), convert_stage.Options("none", tap=tap))
    return saved.read(str(tmp_path / "run"))


def classes(recording: golden.Recording) -> int:
    """Return how many classes the saved classifier has; 0: none was saved."""
    saved_one = any(name.startswith("head_supervised") for name in recording.variables)
    found = sections.classes(recording)
    return found if saved_one and found else 0


def images(recording: golden.Recording) -> np.ndarray:
    how = recording.settings.get("images")
    if how:
        return recording.fill(how["name"], how["shape"], how["law"])
    # A formula, of coarse pixels to be repeated up to the size of the images.
    x = recording.fill(*golden.formula(recording.settings["eval_images"]))
    return steps.enlarged(recording, x).astype(np.float32)


def check(recording: golden.Recording, source: Path, run: saved.Saved) -> None:
    """Compare the recipe with what the program was told, as far as a checkpoint can show it."""
    config, settings = run.config, recording.settings
    fields = {field.name for field in dataclasses.fields(official.Architecture)}
    model = {name: value for name, value in config.model.items() if name in fields}
    wanted = sections.architecture(recording)
    found = official.Architecture(**model)
    assert sections.knowable(found) == sections.knowable(wanted)
    step = settings.get("steps", settings.get("train_steps"))
    kind, layers = sections.head_kind(recording), recording.flags["num_proj_layers"]
    head = {"kind": kind, "layers": layers, "dim": recording.flags["proj_out_dim"]}
    if not source.name.startswith("hub"):  # which says no step, and has no projection head
        assert run.step == step
        shown = {"none": ["kind"], "linear": ["kind", "dim"], "nonlinear": list(head)}[kind]
        assert {name: config.head[name] for name in shown} == {name: head[name] for name in shown}
    assert run.record["converted"]["classes"] == classes(recording)
    assert config.augment.grid == ("corner" if recording.tf1 else "half_pixel")
    if (source / "flags.json").exists():
        assert config.data.image_size == recording.flags["image_size"]


def outputs(run: saved.Saved, x: np.ndarray) -> dict[str, np.ndarray]:
    """Return everything a model computes in inference mode, by the names of both recordings."""
    config, converted = run.config, run.record["converted"]
    ends = modules.encoder(config).apply(run.variables("encoder"), jnp.asarray(x), train=False)
    head = modules.projection_head(config)
    hiddens = head.apply(run.variables("head"), ends["h"], train=False)
    found = {**ends, "final_avg_pool": ends["h"], "default": ends["h"]}
    found |= {f"projection_{i}": hidden for i, hidden in enumerate(hiddens)}
    found |= {"proj_head_input": ends["h"], "proj_head_output": hiddens[-1]}
    if converted["classes"]:
        classifier = modules.classifier(config, converted["classes"])
        tapped = hiddens[converted["classifier_tap"]]
        logits = classifier.apply(run.variables("classifier"), tapped)
        found |= {"logits": logits, "logits_sup": logits}
    return jax.device_get(found)


@pytest.mark.parametrize("recording, source, prefix", golden.deep_ones_slow(sources()))
def test_converted_model_is_the_recorded_one(recording, source, prefix, tmp_path, record_parity):
    run = convert(recording, source, tmp_path)
    check(recording, source, run)

    found = outputs(run, images(recording))
    compared = 0
    for key, wanted in recording.arrays.items():
        name = key.removeprefix(f"{prefix}_")
        if key.startswith(f"{prefix}_") and name in found:
            error = golden.error(found[name], wanted)
            record_parity("checkpoint", recording.name, error, TOLERANCE)
            compared += 1
    assert compared >= 2, f"only {compared} outputs of {source} were recorded"
    if prefix == "eval":
        record_parity("checkpoint", recording.name, weights_error(recording, run), EXACT)


def weights_error(recording: golden.Recording, run: saved.Saved) -> float:
    """Compare all weights with the digests of what was saved."""
    config = run.config
    namer = official.namer(recording.tf1, recording.flags["global_bn"])
    names = namer.encoder(sections.architecture(recording))
    names |= namer.head(config.head.kind, config.head.layers)
    if run.record["converted"]["classes"]:
        names |= namer.classifier()
    kinds = ("params", "batch_stats")
    parts = {part: run.variables(part) for part in ("encoder", "head", "classifier")}
    tree = {kind: {part: trees[kind] for part, trees in parts.items()} for kind in kinds}
    values = official.from_tree(tree, names)
    assert set(values) == set(recording.variables)
    rows = recording.settings.get("ckpt_digest_rows", list(recording.variables))
    stored = golden.Digests.stored(recording, "ckpt" if recording.tf1 else "var")
    kept = [rows.index(name) for name in values]
    (digest,) = golden.digest(recording, values, values)
    return digest.error(golden.Digests(stored.norm[kept], stored.dots[kept]))
