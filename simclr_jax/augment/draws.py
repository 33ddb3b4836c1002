"""Everything random about one view of one image, drawn before any pixel is touched."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from simclr_jax.augment.policy import Policy

# The sampler tries this often before it takes the whole image, as the official one does. Twelve
# would do for ordinary photographs (each try succeeds with 0.9 or so), but not for a panorama.
# They cost little: two numbers a try, and none of them is a pixel.
ATTEMPTS = 100
AREA_ATTEMPTS = {"area": 10, "area_cut": 1}  # of the laws that draw the area


class Draws(NamedTuple):
    """Hold the random choices for one view of one image; `jax.vmap` adds leading axes.

    All placements share these fields, so that equal draws give equal views. Fields that the
    policy switches off are drawn all the same and then not read: switching one operation on or
    off leaves the randomness of the others as it was.
    """

    box: jax.Array  # int32 [4]: y, x, height, width of the crop, pixels
    flip: jax.Array  # bool, as are jitter, grayscale, blur and solarize: whether it is done
    jitter: jax.Array
    order: jax.Array  # int32 [4]: entry k runs k-th; 0 brightness 1 contrast 2 saturation 3 hue
    brightness: jax.Array  # float32: a factor, or what is added in mode "add"
    contrast: jax.Array  # float32: a factor
    saturation: jax.Array  # float32: a factor
    hue: jax.Array  # float32: turns of the colour circle
    grayscale: jax.Array
    blur: jax.Array
    sigma: jax.Array  # float32: of the blur, pixels
    solarize: jax.Array | bool = False


def draw_views(
    policies: Mapping[str, tuple[Policy, ...]],
    seed: int,
    position: jax.Array,
    start: jax.Array,
    height: int | jax.Array,
    width: int | jax.Array,
    *,
    shared_sigma: bool = False,
) -> dict[str, tuple[Draws, ...]]:
    """Draw all views of one image; `jax.vmap` over the last four takes a batch.

    The randomness of a view depends on the seed, the absolute position of its image in the order of
    all examples ever consumed, and which view it is, counted through the groups in the order of
    their names: not on devices, hosts, restarts, or on whether the host or the device augments.

    Args:
      policies: for each group of views, by name, one for each view.
      seed: of the run.
      position: uint32 [2], the image's position (high word, low word).
      start: uint32 [2], the position at which the global batch starts.
      height: of the image, pixels.
      width: of the image, pixels.
      shared_sigma: one blur width for each view of a batch, as the official code on a replica.

    Returns:
      For each group the draws of its views.
    """

    def key_of(at: jax.Array, view: int) -> jax.Array:
        key = jax.random.key(seed)
        for word in (at[0], at[1], view):
            key = jax.random.fold_in(key, word)
        return key

    def draws(view: int, policy: Policy) -> Draws:
        # Beside the keys that `sample` makes of an image's own.
        sigma_key = jax.random.fold_in(key_of(start, view), 5) if shared_sigma else None
        return sample(key_of(position, view), policy, height, width, sigma_key)

    views = itertools.count()
    return {
        group: tuple(draws(next(views), policy) for policy in policies[group])
        for group in sorted(policies)
    }


def sample(
    key: jax.Array,
    policy: Policy,
    height: int | jax.Array,
    width: int | jax.Array,
    sigma_key: jax.Array | None = None,
) -> Draws:
    """Draw one view of an image of `height` x `width` pixels.

    Traceable, and vmappable over `key` (and over the sizes). `sigma_key`, if given, decides the
    blur's sigma alone: a batch that shares it shares one sigma, which is what the official code
    does on each replica.
    Source: official `data_util.py: preprocess_for_train, color_jitter_rand, batch_random_blur`.
    """
    box_key, color_key, own_sigma_key = jax.random.split(key, 3)
    solarize_key = jax.random.fold_in(key, 6)  # one more, beside that of a shared sigma
    # One block of numbers, cut up: every call of the generator costs compile time.
    uniform = jax.random.uniform(color_key, (3, 4), jnp.float32)
    probabilities = [policy.flip, policy.jitter, policy.grayscale, policy.blur]
    flip, jitter, grayscale, blur = uniform[0] < jnp.array(probabilities, jnp.float32)
    low, high = _factor_limits(policy)
    brightness, contrast, saturation, hue = low + uniform[1] * (high - low)
    sigma_key = own_sigma_key if sigma_key is None else sigma_key
    box = crop_box(box_key, policy, height, width) if policy.crop else _whole(height, width)
    return Draws(
        box=box,
        flip=flip,
        jitter=jitter,
        order=jnp.argsort(uniform[2]).astype(jnp.int32),
        brightness=brightness,
        contrast=contrast,
        saturation=saturation,
        hue=hue,
        grayscale=grayscale,
        blur=blur,
        sigma=jax.random.uniform(sigma_key, (), jnp.float32, *policy.blur_sigma),
        solarize=jax.random.uniform(solarize_key, (), jnp.float32) < policy.solarize,
    )


def crop_box(
    key: jax.Array, policy: Policy, height: int | jax.Array, width: int | jax.Array
) -> jax.Array:
    """Draw a crop, int32 [4] (y, x, height, width), by `policy.crop_law`.

    "height" is TensorFlow's law, see `_box_by_height`. Under the two others the area is uniform,
    and so is the logarithm of the aspect: "area" is torchvision's `RandomResizedCrop`, where a crop
    that does not fit is drawn again, ten times in all, and then is the largest one about the centre
    whose aspect is allowed; "area_cut" is deepmind-research `byol/utils/dataset.py:
    _decode_and_random_crop`, where its sides are cut to those of the image.
    """
    if policy.crop_law == "height":
        return _box_by_height(key, policy, height, width)
    return _box_by_area(key, policy, height, width)


def _box_by_area(
    key: jax.Array, policy: Policy, height: int | jax.Array, width: int | jax.Array
) -> jax.Array:
    attempts, (narrow, wide) = AREA_ATTEMPTS[policy.crop_law], policy.aspect
    uniform = jax.random.uniform(key, (2 * attempts + 2,), jnp.float32)
    least, most = policy.area
    area = (least + uniform[:attempts] * (most - least)) * jnp.float32(height) * jnp.float32(width)
    aspect = narrow * jnp.exp(uniform[attempts:-2] * math.log(wide / narrow))
    sizes = _rint(jnp.sqrt(jnp.stack([area / aspect, area * aspect], 1)))  # [attempts, 2]
    whole = jnp.stack([jnp.int32(height), jnp.int32(width)])

    def placed(size: jax.Array) -> jax.Array:
        room = whole - size
        return jnp.concatenate([jnp.minimum(_floor(uniform[-2:] * (room + 1)), room), size])

    if policy.crop_law == "area_cut":
        return placed(jnp.clip(sizes[0], 1, whole))
    valid = ((sizes > 0) & (sizes <= whole)).all(1)
    box = placed(jnp.minimum(sizes[jnp.argmax(valid)], whole))
    return jnp.where(valid.any(), box, _central(height, width, narrow, wide))


def _central(height, width, narrow, wide):
    """Return the largest crop about the centre whose aspect lies between two others."""
    columns = jnp.minimum(jnp.int32(width), _rint(jnp.float32(height) * wide))
    rows = jnp.minimum(jnp.int32(height), _rint(jnp.float32(width) / narrow))
    return jnp.stack([(height - rows) // 2, (width - columns) // 2, rows, columns])


def _box_by_height(
    key: jax.Array, policy: Policy, height: int | jax.Array, width: int | jax.Array
) -> jax.Array:
    """Draw a crop by TensorFlow's law.

    The aspect is uniform and the crop's *height* a uniform integer among those that the aspect
    and the area allow (so the area is not uniform). A crop smaller than the image never touches
    its last row or column. Where no attempt succeeds the crop is the whole image.
    Source: `tf.image.sample_distorted_bounding_box` as `data_util.py` calls it.
    """
    uniform = jax.random.uniform(key, (2 * ATTEMPTS + 2,), jnp.float32)
    narrow, wide = policy.aspect
    aspect = narrow + uniform[:ATTEMPTS] * (wide - narrow)
    image_area = jnp.float32(height) * jnp.float32(width)
    min_area, max_area = (jnp.float32(limit) * image_area for limit in policy.area)

    fewest, most = _rows_allowed(aspect, min_area, max_area, height, width)
    rows = fewest + _floor(uniform[ATTEMPTS:-2] * (most + 1 - fewest))
    # Rounding may have left the limits: one row more, then one less, then the attempt fails.
    rows = rows + (rows * _rint(rows * aspect) < min_area)
    rows = rows - (rows * _rint(rows * aspect) > max_area)
    columns = _rint(rows * aspect)
    area = (rows * columns).astype(jnp.float32)
    valid = (min_area <= area) & (area <= max_area) & (area > 0)
    valid &= (rows <= height) & (columns <= width)
    valid &= area / image_area >= jnp.float32(policy.min_object_covered)

    first = jnp.argmax(valid)
    size = jnp.stack([rows[first], columns[first]])
    room = jnp.stack([jnp.int32(height), jnp.int32(width)]) - size
    place = _floor(uniform[-2:] * room)
    return jnp.where(valid.any(), jnp.concatenate([place, size]), _whole(height, width))


def _rows_allowed(aspect, min_area, max_area, height, width):
    """Return the smallest and largest crop height for each aspect, int32."""
    most = _rint(jnp.sqrt(max_area / aspect))
    fitting = _floor((jnp.float32(width) + 0.5) / aspect)
    fitting -= _rint(fitting * aspect) > width
    most = jnp.where(_rint(most * aspect) > width, fitting, most)
    most = jnp.minimum(most, height)
    return jnp.minimum(_rint(jnp.sqrt(min_area / aspect)), most), most


def _factor_limits(policy: Policy):
    """Return low and high, float32 [4], of brightness, contrast, saturation and hue."""
    centre = jnp.array([policy.brightness_mode == "multiply", 1, 1, 0], jnp.float32)
    strength = jnp.array(
        [policy.brightness, policy.contrast, policy.saturation, policy.hue], jnp.float32
    )
    low = centre - strength
    if policy.brightness_mode == "multiply":
        low = low.at[0].max(0.0)
    return low, centre + strength


def _whole(height, width):
    return jnp.stack([jnp.int32(0), jnp.int32(0), jnp.int32(height), jnp.int32(width)])


def _floor(x):
    return jnp.floor(x).astype(jnp.int32)


def _rint(x):
    """Round to the nearest integer, halves to even, as C's `lrint` does."""
    return jnp.rint(x).astype(jnp.int32)
