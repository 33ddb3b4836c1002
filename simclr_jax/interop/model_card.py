"""The model card of a folder: what it is, how it is used, and the scores of its run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from simclr_jax.errors import printable
from simclr_jax.interop import libraries
from simclr_jax.interop.network import Network
from simclr_jax.judging import results

SUMMARY = "at the end of the run"


def lines(network: Network) -> Iterator[str]:
    """Yield the lines of the card, Markdown with a header of YAML.

    Raises:
      UserError: if a result of the run is damaged.
    """
    config, built, e = network.encoder.config, network.architecture, network.encoder
    method = printable(config.method)
    yield from ("---", "library_name: simclr_jax", "pipeline_tag: image-feature-extraction")
    yield from ("tags:", "- self-supervised", "- resnet", f"- {method.rpartition('.')[2]}", "---")
    yield from (f"# {printable(network.about()['run'])}", "")
    yield (
        f"ResNet-{built.depth}, width {built.width:g}, {built.stem} stem, selective kernels "
        f"{built.sk_ratio:g}, squeeze-excitation {built.se_ratio:g}, variant {built.variant}. "
        f"Trained by simclr_jax: method {method}, stage {config.stage}, step {e.step}, "
        f"{network.weights} weights. `h`, the representation, has {network.features} numbers."
    )
    yield from ("", "## Use", "", "```python", "import simclr_jax", "")
    yield 'encoder = simclr_jax.load("THIS_FOLDER")  # or hf://ORGANISATION/NAME'
    yield "h = encoder(images)  # uint8, or floats in [0, 1], of any size"
    yield from ("```", "", "In PyTorch, without simclr_jax:", "", "```python")
    yield "import encoder  # encoder.py of this folder"
    yield from ("from safetensors.torch import load_file", "")
    yield from ("model = encoder.Encoder().eval()", 'arrays = load_file("model.safetensors")')
    if network.has_head:
        yield 'arrays |= load_file("head.safetensors")'
    yield "model.load_state_dict(arrays)"
    shape = f"[n, {e.channels}, {e.size}, {e.size}]"
    yield f"found = model(images)  # {', '.join(network.taps)}; float32 {shape} in [0, 1]"
    yield from ("```", "", "`model.safetensors` is loaded strictly", "")
    yield from (f"* {line}" for line in libraries.words(network))
    yield from ("", "## Images", "")
    p = e.preprocessing
    yield (
        f"The central {100 * p.proportion:g} % of an image, resized to {p.size} pixels (bicubic, "
        f"grid {p.grid}), in [0, 1]. What the network is shown of them is `{config.model.input}`, "
        "which it makes itself. `preprocessor_config.json` has the nearest that image processors "
        "can do, and the exact law."
    )
    yield from ("", "## Scores", "")
    yield from _scores(network)
    yield from ("", "The recipe is in `config.json`.")


def _scores(network: Network) -> Iterator[str]:
    if network.weights != "trained":
        yield "None: the run's scores are those of its trained weights, and these are the average."
        return
    rows = [*_summary(network), *_results(network)]
    if not rows:
        yield "None were measured at this step."
        return
    yield from ("| what | on | score | % (95 % bootstrap interval) |", "|---|---|---|---|")
    yield from ("| " + " | ".join(map(_cell, row)) + " |" for row in rows)


def _summary(network: Network) -> Iterator[tuple[str, ...]]:
    try:
        found = results.read_summary(network.workdir)
    except FileNotFoundError:
        return
    step = found.get("checkpoint", {}).get("step", found.get("protocol", {}).get("step"))
    if step != network.encoder.step:
        return
    for thing, scores in found["scores"].items():
        for name, score in scores.items():
            yield thing, SUMMARY, name, _said(score)


def _results(network: Network) -> Iterator[tuple[str, ...]]:
    for path in results.paths(network.workdir):
        found = results.read(path)
        if found.get("checkpoint", {}).get("step") != network.encoder.step:
            continue
        data = found.get("data", {})
        name = data.get("name", "")
        if "/" in name:  # where a person's images lie is nobody's business
            name = "images of its own"
        where = f"{name} {data.get('test', {}).get('split', '')}".strip()
        for name, score in found["scores"].items():
            yield f"{found['name']}, tap {found.get('tap', '')}", where, name, _said(score)


def _said(score: Mapping[str, Any]) -> str:
    value = score.get("value", score.get("accuracy"))
    low, high = score.get("low"), score.get("high")
    if value is None:
        return ""
    interval = "" if low is None or high is None else f" ({100 * low:.1f} to {100 * high:.1f})"
    return f"{100 * value:.1f}{interval}"


def _cell(text: str) -> str:
    return printable(text).replace("|", "\\|")
