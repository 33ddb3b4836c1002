"""The suite itself: recordings of patches are judged by their settings, whatever these.

They are made here by loops. Where a setting is wrong by a little, the same file must fail.
"""

from __future__ import annotations

import itertools

import golden
import made
import numpy as np
import pytest
import test_patches as tests

PATCHES = {"height": 23, "width": 17, "splits_per_side": 4, "patch_jitter": 1, "training": False}


def patches(folder, **changes):
    s = PATCHES | changes
    image = np.random.default_rng(0).integers(0, 256, (s["height"], s["width"], 3), np.uint8)
    n, jitter = s["splits_per_side"], s["patch_jitter"]
    high, wide = s["height"] // n, s["width"] // n
    found = []
    for row, column in itertools.product(range(n), range(n)):
        top, left = row * high + jitter // 2, column * wide + jitter // 2
        found.append(image[top : top + high - jitter, left : left + wide - jitter])
    of_one = np.array(found, np.float64).reshape(n * n, -1)
    deviation = np.maximum(of_one.std(1), of_one.shape[1] ** -0.5)[:, None]
    standard = (of_one - of_one.mean(1, keepdims=True)) / deviation
    arrays = {"image_u8": image, "patches": np.array(found)}
    arrays["standardised"] = standard.reshape(arrays["patches"].shape)
    return made.write(folder, "patches", s, arrays)


@pytest.mark.parametrize("change", [{}, {"patch_jitter": 2}, {"splits_per_side": 2}])
def test_patches_are_judged_by_their_own_settings(change, tmp_path):
    assert made.judge(tests.test_patches, patches(tmp_path, **change)) == 2


@pytest.mark.parametrize("change", [{"patch_jitter": 0}, {"splits_per_side": 3}])
def test_patches_of_other_settings_fail(change, tmp_path):
    with pytest.raises(AssertionError, match="above"):
        made.judge(tests.test_patches, patches(tmp_path).with_settings(**change))


def test_patches_drawn_by_another_generator_are_no_comparison(tmp_path):
    with pytest.raises(AssertionError, match="another generator"):
        made.judge(tests.test_patches, patches(tmp_path, training=True))


def test_embeddings_are_joined_by_their_own_permutations(tmp_path):
    n, channels, tiles = 2, 3, 4
    rows = golden.fill("embeddings", (n * tiles, channels), 3, "normal")
    orders = np.array([[3, 0, 1], [2, 2, 0]])
    out = np.array(
        [
            [[rows[i * tiles + tile, channel] for tile in order] for channel in range(channels)]
            for i in range(n)
            for order in orders
        ]
    )
    arrays = {"embeddings": rows, "permutations": orders}
    arrays["out"] = out.reshape(n * len(orders), 1, 1, -1)
    settings = {"n": n, "channels": channels}
    recording = made.write(tmp_path, "patch_concat", settings, arrays)
    assert made.judge(tests.test_patch_concat, recording) == 1
    arrays["permutations"] = orders[::-1]
    with pytest.raises(AssertionError, match="above"):
        other = made.write(tmp_path, "patch_concat", settings, arrays)
        made.judge(tests.test_patch_concat, other)


LOCATION = {"height": 50, "width": 41, "patch": 8, "gap": 3, "grid_start": [4, 2], "jitter": 4}


def location(folder, **changes):
    """Patches of a grid; those that would leave the image are moved in."""
    s = LOCATION | changes
    pitch, (left, top) = s["patch"] + s["gap"], s["grid_start"]
    columns = (s["width"] + s["gap"] - left) // pitch
    rows = (s["height"] + s["gap"] - top) // pitch
    random = np.random.default_rng(0)
    jitters = random.integers(-s["jitter"], s["jitter"] + 1, (rows, columns, 2))
    corners, pairs, labels = np.empty_like(jitters), [], []
    order = [(-1, -1), (0, -1), (1, -1), (-1, 0), (1, 0), (-1, 1), (0, 1), (1, 1)]
    for y, x in itertools.product(range(rows), range(columns)):
        place = np.array([left + x * pitch, top + y * pitch]) + jitters[y, x]
        most = s["width"] - s["patch"], s["height"] - s["patch"]
        corners[y, x] = np.clip(place, 0, most)
        for right, down in order[:4]:
            if 0 <= x + right < columns and y + down >= 0:
                other = (y + down) * columns + x + right
                pairs += [(y * columns + x, other), (other, y * columns + x)]
                labels += [order.index((right, down)), order.index((-right, -down))]
    arrays = {"jitters": jitters, "corners": corners, "pairs": pairs, "labels": labels}
    return made.write(folder, "relative_location", s, arrays, "numpy")


@pytest.mark.parametrize("change", [{}, {"gap": 9}, {"grid_start": [0, 7]}, {"jitter": 0}])
def test_places_are_judged_by_their_own_settings(change, tmp_path):
    assert made.judge(tests.test_relative_location, location(tmp_path, **change)) == 4


@pytest.mark.parametrize("change", [{"gap": 4}, {"patch": 9}, {"grid_start": [2, 4]}])
def test_places_of_other_settings_fail(change, tmp_path):
    with pytest.raises(AssertionError, match="above"):
        made.judge(tests.test_relative_location, location(tmp_path).with_settings(**change))


def far_apart(tiles, count, first):
    """The law, the mean distance to all that are kept being taken anew for each."""
    every = list(itertools.permutations(range(tiles)))
    kept = [every.pop(first)]
    while len(kept) < count:
        apart = [np.mean([np.not_equal(p, k).mean() for k in kept]) for p in every]
        kept.append(every.pop(int(np.argmax(apart))))
    return np.array(kept)


@pytest.mark.parametrize("tiles, count, first", [(3, 6, 4), (5, 9, 77)])
def test_permutations_are_judged_by_their_own_settings(tiles, count, first, tmp_path):
    settings = {"tiles": tiles, "count": count, "first_index": first}
    arrays = {"permutations": far_apart(tiles, count, first)}
    recording = made.write(tmp_path, "jigsaw_permutations", settings, arrays, "numpy")
    assert made.judge(tests.test_jigsaw_permutations, recording) == 1
    with pytest.raises(AssertionError, match="above"):
        made.judge(tests.test_jigsaw_permutations, recording.with_settings(first_index=0))


def test_permutations_of_another_file_are_not_known(tmp_path):
    settings = {"count": 100, "file": "permutations_701.bin"}
    arrays = {"permutations": np.tile(np.arange(9), (100, 1))}
    with pytest.raises(AssertionError, match="not known: permutations_701"):
        made.judge(
            tests.test_jigsaw_permutations,
            made.write(tmp_path, "jigsaw_permutations", settings, arrays),
        )
