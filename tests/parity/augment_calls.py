"""Repeat the recorded augmentation calls with our code: files in, pairs (ours, official) out.

Nothing here knows a file by name: a file says which official function was called with what, and
`OPERATIONS` says what we have for that function. We have everything twice, `on_device` in JAX and
`on_host` in TensorFlow, and crops a third time, out of a canvas. All are called by the same names;
see `Implementation`.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from golden import Recording
from recorded import Settings

from simclr_jax.augment import color, on_device, on_host, resize
from simclr_jax.augment.draws import Draws
from simclr_jax.augment.policy import Policy

GRID = {"tf1": "corner", "tf2": "half_pixel"}
MODE = {"simclrv1": "add", "simclrv2": "multiply"}
COLOR = ("brightness", "contrast", "saturation", "hue")  # as `Draws.order` numbers them


Parameters = collections.ChainMap


def function(recording: Recording) -> str:
    """Return the official function, without the file it is in: `crop_and_resize`."""
    source = re.sub(r"^(tf2/)?data_util\.py[: ]", "", recording.spec["source"])
    return re.split(r"[ ,(]", source)[0]


def image_tf1(recording: Recording) -> np.ndarray:
    settings = recording.settings["image"]
    height, width, name = settings["height"], settings["width"], settings["image_name"]
    kind, _, number = settings["kind"].partition("_")
    assert kind in ("noise", "smooth") and number in ("", "u8"), settings["kind"]
    if kind == "noise":
        image = recording.fill(name, (height, width, 3), "uniform")
    else:
        phase = recording.fill(f"{name}/phase", (6,), "uniform")
        phase = 2 * np.pi * phase.astype(np.float64)
        y, x, c = np.ogrid[:height, :width, :3]
        image = 0.5 + 0.24 * np.sin(2 * np.pi * (1 + c) * y / height + phase[:3])
        image = image + 0.24 * np.cos(2 * np.pi * (2 + c) * x / width + phase[3:])
    if number:
        return np.clip(np.floor(256 * image), 0, 255).astype(np.uint8)
    return image.astype(np.float32)


def image_tf2(settings: Settings, recording: Recording) -> np.ndarray:
    if "stored" in settings:
        return recording.arrays[settings["stored"]]
    image = recording.fill(settings["fill"], settings["shape"], settings["law"])
    if "scale" in settings:
        return image * np.float32(settings["scale"]) + np.float32(settings["offset"])
    return np.round(255 * image).astype(np.uint8)


def calls(recording: Recording) -> Iterator[tuple[np.ndarray, Parameters, np.ndarray]]:
    """Yield (image, flat parameters, recorded output) of each call in the file."""
    settings, arrays = recording.settings, recording.arrays
    common = {"grid": GRID[recording.spec["flavour"]]}
    if match := re.search(r"impl=(\w+)", recording.spec["source"]):
        common["impl"] = match[1]
    if recording.tf1:
        image = image_tf1(recording)
        size = {"height": settings.get("out_height"), "width": settings.get("out_width")}
        yield image, flat(settings, common | size), arrays["output"]
        return
    images = {name: image_tf2(made, recording) for name, made in settings["images"].items()}
    for call in settings["calls"]:
        yield images[call["image"]], flat(call, common), arrays[call["out"]]


def flat(settings: Settings, common: dict[str, Any]) -> Parameters:
    """Return the parameters of a call in one: the innermost group that has one is right."""
    groups = [settings]
    for key in ("params", "draws", "factors"):
        groups += [group[key] for group in groups if isinstance(group.get(key), Settings)]
    return Parameters(*reversed(groups), common)


class Implementation(NamedTuple):
    """Our functions, NumPy in and out: those of one of the two modules under the same names."""

    augment: Callable
    adjust_color: Callable  # (image, which of the four, draws, policy): one of them, not clipped
    center_box: Callable
    center_crop: Callable
    color_jitter: Callable
    crop_resize: Callable
    flip: Callable
    gaussian_blur: Callable
    grayscale: Callable
    to_float: Callable


def adjust_color(image, operation, draws, policy):
    """What `on_host.adjust_color` does, of the functions that a turn on the device is made of."""
    name = COLOR[operation]
    mode = [policy.brightness_mode] if name == "brightness" else []
    return getattr(color, f"adjust_{name}")(image, getattr(draws, name), *mode)


CANVAS = 96  # side of what images are laid on, pixels


def on_canvas(image):
    """Return an image as placement `canvas` sends it: bytes on a canvas, here with noise around.

    Recorded images of other numbers than bytes are such multiples of 1/255.
    """
    bytes_or_more = image if image.dtype == np.uint8 else image * np.float32(255)
    canvas = np.random.default_rng(0).integers(0, 256, (CANVAS, CANVAS, image.shape[-1]))
    canvas = canvas.astype(image.dtype)
    canvas[: image.shape[0], : image.shape[1]] = bytes_or_more
    return canvas


cut_from_canvas = jax.jit(on_device.cut_from_canvas, static_argnums=(2, 3))
augment_from_canvas = jax.jit(
    lambda canvas, draws, policy: on_device.augment_from_canvas(canvas, [draws], [policy])[0],
    static_argnums=2,
)


def crop_resize(image, box, size, grid):
    return on_device.crop_resize(on_device.to_float(image), box, size, grid)


def as_numpy(function: Callable) -> Callable:
    return lambda *arguments: np.asarray(function(*arguments))


IMPLEMENTATIONS = {
    "device": Implementation(
        augment=jax.jit(on_device.augment, static_argnums=2),
        adjust_color=jax.jit(adjust_color, static_argnums=(1, 3)),
        center_box=resize.center_box,
        center_crop=jax.jit(on_device.center_crop, static_argnums=(1, 2)),
        color_jitter=jax.jit(on_device.color_jitter, static_argnums=2),
        crop_resize=jax.jit(crop_resize, static_argnums=(2, 3)),
        flip=on_device.flip,
        gaussian_blur=jax.jit(on_device.gaussian_blur, static_argnums=2),
        grayscale=jax.jit(on_device.grayscale),
        to_float=jax.jit(on_device.to_float),
    ),
    "host": Implementation(
        **{name: as_numpy(getattr(on_host, name)) for name in Implementation._fields}
    ),
}
# What follows the crop is that of `device`.
IMPLEMENTATIONS["canvas"] = IMPLEMENTATIONS["device"]._replace(
    augment=lambda image, *rest: augment_from_canvas(on_canvas(image), *rest),
    crop_resize=lambda image, *rest: cut_from_canvas(on_canvas(image), *rest),
)
# Official functions that crop.
CROPPING = ("tf.image.resize", "crop_and_resize", "center_crop", "preprocess_image")


# One function per official one: ours, image as uint8 or float32, parameters -> pixels.


def crop_and_resize(ours, image, p):
    box = np.array(p.get("box", (0, 0, *image.shape[:2])))
    return ours.crop_resize(image, box, (p["height"], p["width"]), p["grid"])


def center_crop(ours, image, p):
    size = p["height"], p["width"]
    box = np.array(ours.center_box(*image.shape[:2], size, p["crop_proportion"]))
    assert list(box) == p.get("box", list(box))
    return ours.crop_resize(image, box, size, p["grid"])  # official: not clipped


def adjust(name):
    """An operation with one number: `value` in TF2 files, the name of the draw in TF1 files."""

    def compare(ours, image, p):
        mode = MODE[p["impl"]] if name == "brightness" else "multiply"
        drawn = draws({name: p.get("value", p.get(name))})
        policy = Policy(size=1, brightness_mode=mode)
        return ours.adjust_color(ours.to_float(image), COLOR.index(name), drawn, policy)

    return compare


def flip(ours, image, p):
    image = ours.to_float(image)
    return ours.flip(image) if p["value"] < 0.5 else image


def grayscale(ours, image, p):
    return ours.grayscale(ours.to_float(image))


def gaussian_blur(ours, image, p):
    return ours.gaussian_blur(ours.to_float(image), p["sigma"], p["kernel_size"])


def jitter(ours, image, p):
    policy = Policy(size=1, brightness_mode=MODE[p["impl"]])
    return ours.color_jitter(ours.to_float(image), draws(p), policy)


def preprocess(ours, image, p):
    size = p.get("out_size", p.get("height"))
    assert p.get("width", size) in (size, None)
    box = p.get("box")
    training = p.get("is_training", "test_crop" not in p)
    distort = p.get("color_distort", p.get("color_jitter_strength", 0) > 0)
    if not training and not p["test_crop"]:
        assert image.shape[:2] == (size, size)
        return ours.to_float(image)  # evaluation at 32 pixels
    if not training:
        # The share that the official program keeps, whatever it is asked for.
        assert box in (None, list(ours.center_box(*image.shape[:2], (size, size), 0.875)))
        return ours.center_crop(image, size, p["grid"])
    off = {} if distort else {"jitter": 0.0, "grayscale": 0.0}
    return ours.augment(image, draws(p), Policy(size=size, grid=p["grid"], blur=0, **off))


def draws(p: Mapping[str, Any], **fields: Any) -> Draws:
    """Put recorded draws into ours; the TF1 files record the uniform numbers, not the events."""
    applied = p.get("apply", ())
    jitter, gray = p.get("order") is not None, p.get("grayscale", False)
    if len(applied) == 4:
        jitter, gray = applied[2] < 0.8, applied[3] < 0.2
    values = {
        "box": np.array(p.get("box", (0, 0, 0, 0)), np.int32),
        "order": np.array(p.get("order") or (0, 1, 2, 3), np.int32),
        "flip": p.get("flip", False),
        "jitter": jitter,
        "grayscale": gray,
        "blur": False,
        "sigma": 1.0,
    } | fields
    for name in COLOR:
        values[name] = np.float32(p.get(name, 0.0))
    return Draws(**{name: np.asarray(value) for name, value in values.items()})


def one_image(operation):
    def compare(ours, recording):
        for image, parameters, recorded in calls(recording):
            yield operation(ours, image, parameters), recorded

    return compare


def batch_random_blur(ours, recording):
    """One sigma a view, a choice an example, clipped; through `augment` where shapes allow it."""
    settings, arrays, tf1 = recording.settings, recording.arrays, recording.tf1
    size = settings["image_size_argument" if tf1 else "height"]
    assert settings["kernel_size"] == size // 10
    for v, recorded in enumerate(arrays["output"] if tf1 else (arrays["out0"], arrays["out1"])):
        how = {"name": "image{v}", "law": "uniform"} if tf1 else settings["images"]
        images = recording.fill(how["name"].format(v=v), recorded.shape, how["law"])
        if tf1:
            sigma = settings["draws"]["sigma_per_view"][v]
            uniform = settings["draws"]["selector_uniform_per_view"][v]
        else:
            sigma, uniform = settings["sigma"][v], arrays[f"uniform_v{v}"]
        for image, u, expected in zip(images, uniform, recorded, strict=True):
            chosen = u < settings["blur_probability"]
            if image.shape[0] == size:
                policy = Policy(size=size, crop=False, flip=0, jitter=0, grayscale=0)
                yield ours.augment(image, draws({}, blur=chosen, sigma=sigma), policy), expected
            else:
                blurred = np.clip(ours.gaussian_blur(image, sigma, size // 10), 0, 1)
                yield blurred if chosen else image, expected


def compute_crop_shape(ours, recording):
    for height, width, out_height, out_width, *box in recording.arrays["table"].tolist():
        proportion = recording.settings["crop_proportion"]
        yield ours.center_box(height, width, (out_height, out_width), proportion), box


def convert_image_dtype(ours, recording):
    yield ours.to_float(recording.arrays["input"]), recording.arrays["output"]


# Official function: (tolerance group, our comparison). An unknown function is an error.
OPERATIONS = {
    "tf.image.convert_image_dtype": ("exact", convert_image_dtype),
    "_compute_crop_shape": ("exact", compute_crop_shape),
    "tf.image.random_flip_left_right": ("exact", one_image(flip)),
    "crop_and_resize": ("resize", one_image(crop_and_resize)),
    "tf.image.resize": ("resize", one_image(crop_and_resize)),
    "center_crop": ("resize", one_image(center_crop)),
    "random_brightness": ("color", one_image(adjust("brightness"))),
    "to_grayscale": ("color", one_image(grayscale)),
    **{
        official.format(name): ("color", one_image(adjust(name)))
        for name in COLOR[1:]
        for official in ("tf.image.adjust_{}", "tf.image.random_{}")
    },
    "gaussian_blur": ("blur", one_image(gaussian_blur)),
    "batch_random_blur": ("blur", batch_random_blur),
    "color_jitter": ("chain", one_image(jitter)),
    "preprocess_image": ("chain", one_image(preprocess)),
}

# Official functions that we do not have, and why. Their files are skipped with the reason.
NOT_OURS = {
    "color_jitter_nonrand": "with a zero maximum it applies hue in that slot; nothing calls it",
}

# Samplers, compared in law by the test itself.
LAWS = ("distorted_bounding_box_crop",)


def comparisons(
    recording: Recording, placement: str
) -> tuple[str, Iterator[tuple[np.ndarray, np.ndarray]]]:
    """Return the tolerance group and the pairs (ours, official) of all calls in the file.

    `placement` is "device", "host" or "canvas": which of our implementations.
    """
    called = function(recording)
    if called not in OPERATIONS:
        raise KeyError(f"{recording.name}: no counterpart of the official function {called}")
    group, compare = OPERATIONS[called]
    return group, compare(IMPLEMENTATIONS[placement], recording)
