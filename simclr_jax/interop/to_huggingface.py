"""A model folder as on the Hugging Face Hub; `model_folder.py` says what is in it and reads it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from simclr_jax import documents, extras
from simclr_jax.interop import libraries, model_card, model_folder, to_torch, torch_names
from simclr_jax.interop.network import LOGITS, Network
from simclr_jax.models.inputs import DEVIATION, MEAN
from simclr_jax.stages.encoder import Encoder

CARD, PREPROCESSOR = "README.md", "preprocessor_config.json"
BICUBIC = 3  # as Pillow numbers resizes
LAW = "simclr_jax"  # under which the exact preprocessing stands


def check() -> str:
    """Return what reads the folder. Raises `UserError` if it is not installed."""
    with extras.needed("--format=huggingface", "safetensors"):
        import safetensors
    return f"simclr_jax.load, safetensors {safetensors.__version__}"


def write(network: Network, out: Path) -> None:
    """Write the folder; encoder, projection head and classifier are in it whatever the taps."""
    from safetensors.numpy import save

    out.mkdir()
    sealed = {}
    for name, arrays in _files(network).items():
        content = save(arrays, metadata={"format": "pt"})
        (out / name).write_bytes(content)
        sealed[name] = model_folder.digest(content)
    (out / to_torch.MODULE).write_text(to_torch.module_text(network))
    documents.write(out / PREPROCESSOR, _preprocessor(network))
    documents.write(out / model_folder.CONFIG, _config(network, sealed))
    (out / CARD).write_text("\n".join(model_card.lines(network)) + "\n")


def run(out: Path, network: Network, images: np.ndarray) -> dict[str, np.ndarray]:
    """Return what `simclr_jax.load` makes of the folder, for images `[b, h, w, c]`."""
    encoder = Encoder.of(model_folder.read(str(out)), network.encoder.mesh)
    encoder = encoder.changed({"train.dtype": "float32"})
    wanted = tuple(dict.fromkeys(network.reads))
    found = encoder.extract(images, wanted, batch_size=len(images), prepared=True)
    if LOGITS in network.taps and encoder.classifier:
        tap, weights = encoder.classifier
        found[LOGITS] = found[tap] @ np.asarray(weights.kernel) + np.asarray(weights.bias)
    return {tap: found[tap] for tap in network.taps}


def _files(network: Network) -> dict[str, dict[str, np.ndarray]]:
    """Return the arrays of each file: what other libraries load strictly, and what they lack."""
    with_classifier = LOGITS in network.taps
    tree = network.arrays(("encoder", "head"), with_classifier)
    state = torch_names.to_torch(tree, network.architecture, network.encoder.step)
    classifier = network.encoder.classifier
    on_head = classifier is not None and classifier[0] != "h"
    apart = ("head.", "fc.") if on_head else ("head.",)
    head = {name: x for name, x in state.items() if name.startswith(apart)}
    rest = {name: x for name, x in state.items() if name not in head}
    return {model_folder.MODEL: rest, **({model_folder.HEAD: head} if head else {})}


def _config(network: Network, sealed: Mapping[str, str]) -> dict[str, Any]:
    timm = libraries.match(network, "timm")
    fitting = timm.model and not timm.why and network.encoder.config.model.input != "standardised"
    return {
        **network.about(),
        "model_type": model_folder.KIND,
        "format": model_folder.FORMAT,
        "channels": network.encoder.channels,
        "files": dict(sealed),
        **(_for_timm(network, timm.model) if fitting else {}),
    }


def _for_timm(network: Network, model: str) -> dict[str, Any]:
    """Return the fields by which timm builds the model of a folder."""
    e = network.encoder
    normalised = e.config.model.input == "normalised"
    classes = len(e.classifier[1].bias) if e.classifier and LOGITS in network.taps else 0
    return {
        "architecture": model,
        "num_classes": classes,
        "num_features": 2048 if network.architecture.depth >= 50 else 512,
        "pretrained_cfg": {
            "input_size": [3, e.size, e.size],
            "interpolation": "bicubic",
            "crop_pct": e.preprocessing.proportion,
            "mean": list(MEAN) if normalised else [0.0, 0.0, 0.0],
            "std": list(DEVIATION) if normalised else [1.0, 1.0, 1.0],
            "num_classes": classes,
            "first_conv": "conv1",
            "classifier": "fc",
        },
    }


def _preprocessor(network: Network) -> dict[str, Any]:
    """Return the nearest that image processors of the Hub can do, for `encoder.py`."""
    p = network.encoder.preprocessing
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": p.channels == 3,
        "do_resize": True,
        "size": {"shortest_edge": round(p.size / p.proportion)},
        "resample": BICUBIC,
        "do_center_crop": True,
        "crop_size": {"height": p.size, "width": p.size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": False,
        LAW: network.preprocessing(),
    }
