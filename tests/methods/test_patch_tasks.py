"""Relative patch location and jigsaw: their losses written out, their draws, what they refuse.

Images are noise, so that where a patch was cut is found again in the whole view.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import smallest
from frame import toys
from ml_collections.config_dict import placeholder
from train import tiny

from simclr_jax import declaration, parallel, recipes, validation
from simclr_jax.augment.patches import DIRECTIONS, NAMES
from simclr_jax.data.sources import Images
from simclr_jax.errors import UserError
from simclr_jax.frame import modules, patches
from simclr_jax.frame.keys import Keys
from simclr_jax.methods import jigsaw, relative_patch
from simclr_jax.stages import pretrain
from simclr_jax.stages.views import view_maker
from simclr_jax.train.step import make_step

pytestmark = pytest.mark.x64

RELATIVE = [{"pairs": "one"}, {"pairs": "centre"}, {"pairs": "all", "grid": 2, "jitter": 1}]
JIGSAW = [{}, {"shared": False}, {"grid": 2, "permutations": 24, "patch": 3, "jitter": 1}]
CASES = [("relative_patch", fields) for fields in RELATIVE]
CASES += [("jigsaw", fields) for fields in JIGSAW]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Replace the encoder by one that compiles at once."""
    monkeypatch.setattr(modules, "encoder", lambda config: toys.Small(modules.norm(config)))


def recipe(method, **fields):
    own = {f"{method}__{name}": value for name, value in fields.items() if "__" not in name}
    others = {name: value for name, value in fields.items() if "__" in name}
    fixed = {"train__dtype": "float64", "bn__groups": 1, f"{method}__dropout": 0.0}
    return smallest.recipe(method, **(fixed | own | others))


def looked(stage, c):
    """Return the function from a batch to `patches`, and the `whole` views they are cut from."""
    views = view_maker(c)
    return jax.jit(lambda batch: {**stage.look(batch), "whole": views(batch)["views"]})


def where(patch, whole):
    """Return the one place (top, left) of a view at which a patch was cut."""
    side = len(patch)
    windows = np.lib.stride_tricks.sliding_window_view(whole, patch.shape).squeeze(2)
    (place,) = np.argwhere((windows == patch).all((2, 3, 4)))
    assert (place + side <= len(whole)).all()
    return place


def answers(c, seen, number):
    """Return which patches each question of an image shows, and the answer, from what was seen."""
    places = np.array([where(patch, seen["whole"][number, 0]) for patch in seen["patches"][number]])
    if c.method == "jigsaw":
        side = c.jigsaw.grid
        cell = c.jigsaw.patch + c.jigsaw.jitter
        np.testing.assert_array_equal(  # row by row
            ((places - places.min(0)) / cell).round(), np.argwhere(np.ones((side, side)))
        )
        return None
    kind, found = c.relative_patch.pairs, []
    pitch = c.relative_patch.patch + c.relative_patch.gap + c.relative_patch.jitter
    for first in range(len(places)):
        for second in range(len(places)):
            offset = tuple(((places[second] - places[first]) / pitch).round().astype(int))
            if offset not in DIRECTIONS or (kind == "one" and first):
                continue
            if kind == "centre":
                if second == 4:
                    found.append(((first, second), DIRECTIONS.index((-offset[0], -offset[1]))))
            else:
                found.append(((first, second), DIRECTIONS.index(offset)))
    return found


def normalised(x, dense):
    """Return a dense layer, batch normalisation and ReLU by NumPy, at scale and bias of `bn`."""
    y = x @ dense["dense"]["kernel"]
    y = (y - y.mean(0)) / np.sqrt(y.var(0) + 1e-5)
    return np.maximum(y * dense["bn"]["scale"] + dense["bn"]["bias"], 0)


@pytest.mark.parametrize("method, fields", CASES)
def test_the_loss_is_that_of_its_definition(method, fields):
    c = recipe(method, **fields)
    stage, mesh = tiny.make_stage(c, 1)
    state, (_, batch) = tiny.perturbed(stage.init()), next(stage.batches(0, 1))
    _, metrics = make_step(stage, mesh)(parallel.replicate(mesh, state), batch)
    rows = {name: value[0] for name, value in batch.items()}
    seen = {name: np.asarray(x) for name, x in looked(stage, c)(rows).items()}
    n, count = seen["patches"].shape[:2]

    params = state.params
    encoder = toys.Small(functools.partial(modules.norm(c), axis_name=None))
    stats = {"params": params["encoder"], "batch_stats": state.batch_stats["encoder"]}
    encode = jax.jit(functools.partial(encoder.apply, train=True, mutable=["batch_stats"]))
    ends, _ = encode(stats, seen["patches"].reshape(-1, *seen["patches"].shape[2:]))
    layer = params["patch"]["dense"]
    embeddings = (np.asarray(ends["h"]) @ layer["kernel"] + layer["bias"]).reshape(n, count, -1)

    if method == "jigsaw":
        known = jigsaw.far_apart(c.jigsaw.grid**2, c.jigsaw.permutations)
        keys = Keys(c.seed, jnp.zeros((), jnp.int32), jnp.asarray(rows["position"]))
        found = drawn(c, keys, n)
        questions = [[(known[k], k) for k in of_image] for of_image in found]
        assert answers(c, seen, 0) is None
    else:
        questions = [answers(c, seen, number) for number in range(n)]
    joined, labels = [], []
    for number, of_image in enumerate(questions):
        for shown, label in of_image:
            taken = [embeddings[number, patch] for patch in shown]
            joined.append([place[d] for d in range(len(taken[0])) for place in taken])
            labels.append(label)
    hidden = normalised(np.array(joined), params["together"])
    last = params["answer"]["dense"]
    logits = hidden @ last["kernel"] + last["bias"]
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    rows = np.arange(len(labels))
    np.testing.assert_allclose(metrics["loss"][0], -log_p[rows, labels].mean(), rtol=1e-9)
    (name,) = {"place_accuracy", "permutation_accuracy"} & metrics.keys()
    np.testing.assert_allclose(metrics[name][0], np.mean(log_p.argmax(1) == labels), rtol=1e-12)


def drawn(c, keys, n):
    """Return the permutations that images are laid out by, from the answers that people see."""
    method = made(c)
    views = {"patches": jnp.zeros((n, c.jigsaw.grid**2, 2, 2, 3))}
    first = [int(text.partition(":")[0]) for text in method.show(views, keys).answers]
    net = Stub(c.jigsaw.permutations)
    asked = np.asarray(method.forward(net, views, {}, {}, keys)["asked"])
    assert asked[:, 0].tolist() == first
    assert all(len(set(row)) == c.jigsaw.drawn for row in asked.tolist())
    assert (len(set(map(tuple, asked.tolist()))) == 1) is c.jigsaw.shared
    return asked.tolist()


def made(c):
    """Return the method of a recipe."""
    return pretrain.make_method(c, tiny.timetable(c), tiny.sorted_images())


class Stub:
    """A network whose every layer gives ones."""

    def __init__(self, answers, hidden=7):
        self.widths = {"patch": 5, "together": hidden, "answer": answers}

    def __call__(self, name, x, **how):
        if name == "encoder":
            return {"h": jnp.ones((len(x), 6))}
        return jnp.ones((len(x), self.widths[name]))


def test_the_neighbour_is_any_of_eight_and_the_grid_anywhere():
    """A pair is drawn anew for each image; in other epochs another of the same image."""
    c = recipe("relative_patch", pairs="one", train__steps=12)
    stage, _ = tiny.make_stage(c, 1)
    look, found = looked(stage, c), []
    for _, batch in stage.batches(0, 12):
        rows = {name: value[0] for name, value in batch.items()}
        seen = {name: np.asarray(x) for name, x in look(rows).items()}
        assert seen["patches"].shape[:2] == (tiny.BATCH, 2)
        found += [answers(c, seen, number)[0][1] for number in range(tiny.BATCH)]
    assert (np.bincount(found, minlength=8) > 10).all()  # of 24


def test_permutations_of_a_step_are_drawn_anew_and_shared_if_asked():
    for shared in (True, False):
        c = recipe("jigsaw", shared=shared)
        position = jnp.asarray(np.stack([np.zeros(9), np.arange(9)], 1), jnp.uint32)
        steps = [drawn(c, Keys(0, jnp.int32(step), position), 9) for step in range(3)]
        assert (steps[0] != steps[1] != steps[2]) is shared  # of rows: by position, not by step


@pytest.mark.parametrize("rate", [0.0, 0.25])
@pytest.mark.parametrize("method", ["relative_patch", "jigsaw"])
def test_a_share_of_what_sees_the_patches_together_is_dropped(method, rate):
    c, seen = recipe(method, dropout=rate), []
    net = Stub(4, hidden=400)
    position = jnp.asarray(np.stack([np.zeros(3), np.arange(3)], 1), jnp.uint32)
    keys = Keys(0, jnp.zeros((), jnp.int32), position)

    def watched(name, x, **how):
        if name == "answer":
            seen.append(np.asarray(x).reshape(2, 3, 400))  # two questions about three images
        return net(name, x, **how)

    patches.answered(c, watched, jnp.ones((3, 9, 5)), jnp.array([[0, 1], [2, 3]]), keys)
    values, counts = np.unique(seen[0], return_counts=True)
    if not rate:
        assert values.tolist() == [1]
        return
    np.testing.assert_allclose(values, [0, 1 / (1 - rate)])
    assert counts[0] / counts.sum() == pytest.approx(rate, abs=0.03)
    assert (
        not np.array_equal(seen[0][0], seen[0][1]) and len({x.tobytes() for x in seen[0][0]}) == 3
    )


@pytest.mark.parametrize("method", ["relative_patch", "jigsaw"])
def test_patches_lie_as_the_recipe_says(method):
    """Where they may: cells of patch and jitter, a gap between them, the grid anywhere."""
    c = recipe(method, patch=1, jitter=1, gap=1)  # 8 pixels: no room for the grid to move
    if method == "relative_patch":
        recipes.put(c, "relative_patch.pairs", "centre")
    stage, _ = tiny.make_stage(c, 1)
    look, found = looked(stage, c), []
    for _, batch in stage.batches(0, 3):
        seen = look({name: value[0] for name, value in batch.items()})
        seen = {name: np.asarray(x) for name, x in seen.items()}
        found += [
            [where(patch, whole[0]) for patch in of_image]
            for of_image, whole in zip(seen["patches"], seen["whole"], strict=True)
        ]
    for axis in range(2):
        rows = np.array(found)[..., axis].reshape(-1, 3, 3)
        rows = rows if axis == 0 else rows.swapaxes(1, 2)
        assert [sorted({*rows[:, k].ravel()}) for k in range(3)] == [[0, 1], [3, 4], [6, 7]]


@pytest.mark.parametrize("method", ["relative_patch", "jigsaw"])
def test_the_head_is_as_wide_as_asked(method):
    stage, _ = tiny.make_stage(recipe(method, embed=4, hidden=9), 1)
    params = jax.eval_shape(stage.init).params
    seen = 2 if method == "relative_patch" else 9
    assert params["patch"]["dense"]["kernel"].shape == (6, 4)
    assert params["together"]["dense"]["kernel"].shape == (4 * seen, 9)
    assert params["answer"]["dense"]["kernel"].shape == (9, 8 if seen == 2 else 6)


@pytest.mark.parametrize("method", ["relative_patch", "jigsaw"])
def test_of_one_colour_others_are_noise(method):
    c = recipe(method, colours="one")
    stage, _ = tiny.make_stage(c, 1)
    batch = {name: value[0] for name, value in next(stage.batches(0, 1))[1].items()}
    deviation = np.asarray(jax.jit(stage.look)(batch)["patches"]).std((2, 3))  # [n, p, 3]
    assert (np.sort(deviation)[..., 1] < 1 / 255).all()
    kept = deviation.argmax(-1)
    assert {*kept.ravel()} == {0, 1, 2} and (kept[:, 0] != kept[:, 1]).any()


@pytest.mark.parametrize("method, fields", CASES)
def test_without_knowledge_the_loss_is_the_one_declared(method, fields):
    """Of who knows how frequent answers are; the first step is near that."""
    c = recipe(method, **fields)
    if method == "jigsaw":
        labels = np.arange(c.jigsaw.permutations)
    else:
        labels = relative_patch.pairs_of(c).labels
    share = np.unique(labels, return_counts=True)[1] / len(labels)
    want = -np.sum(share * np.log(share))
    assert declaration.find(method).chance(c) == pytest.approx(want)
    stage, mesh = tiny.make_stage(c, 1)
    _, metrics = make_step(stage, mesh)(stage.init(), next(stage.batches(0, 1))[1])
    assert metrics["loss"][0] == pytest.approx(want, rel=0.1)


def test_people_see_a_pair_and_where_its_second_lies():
    c = recipe("relative_patch", pairs="one")
    stage, _ = tiny.make_stage(c, 1)
    batch = {name: value[0] for name, value in next(stage.batches(0, 1))[1].items()}
    made = {name: np.asarray(x) for name, x in looked(stage, c)(batch).items()}
    seen = stage.show({"patches": jnp.asarray(made["patches"])}, batch)
    for number, text in enumerate(seen.answers):
        ((_, label),) = answers(c, made, number)
        assert text == f"the second lies {NAMES[label]}"
    picture = np.asarray(seen.pictures["pair"])[:, 0]  # [n, 2, 5, 3]: two patches and a line
    np.testing.assert_array_equal(picture[:, :, :2], made["patches"][:, 0])
    np.testing.assert_array_equal(picture[:, :, 3:], made["patches"][:, 1])
    assert (picture[:, :, 2] == 1).all()


def test_people_see_the_puzzle_and_its_permutation():
    c = recipe("jigsaw")
    stage, _ = tiny.make_stage(c, 1)
    batch = {name: value[0] for name, value in next(stage.batches(0, 1))[1].items()}
    views = jax.jit(stage.look)(batch)
    seen, tiles = stage.show(views, batch), np.asarray(views["patches"])
    laid, cut = (np.asarray(seen.pictures[name])[:, 0] for name in ("laid", "cut"))
    corners = [(3 * row, 3 * column) for row in range(3) for column in range(3)]
    for number, text in enumerate(seen.answers):
        order = [int(tile) - 1 for tile in text.partition(": ")[2].split()]
        known = jigsaw.far_apart(9, c.jigsaw.permutations)
        assert order == known[int(text.partition(":")[0])].tolist()
        for place, (top, left) in enumerate(corners):
            at = slice(top, top + 2), slice(left, left + 2)
            np.testing.assert_array_equal(laid[number][at], tiles[number, order[place]])
            np.testing.assert_array_equal(cut[number][at], tiles[number, place])


@pytest.mark.parametrize(
    "method, fields, said",
    [
        (
            "relative_patch",
            {"patch": 3},
            r"patch is 3, which with relative_patch.grid=3, .*gap=1 and .*jitter=0 takes 11 pixels,"
            r" but views have 8: set --config.relative_patch.patch=2 .*jitter=0, or "
            r"--config.data.image_size=11",
        ),
        ("relative_patch", {"gap": 9}, r"takes 24 pixels, .*: set --config.data.image_size=24$"),
        ("relative_patch", {"pairs": "all", "grid": 4}, r"grid=4.* takes 11 pixels"),
        ("relative_patch", {"grid": 4}, "grid is 4, but relative_patch.pairs=one does not read it"),
        ("relative_patch", {"pairs": "all", "grid": 1}, "grid is 1: it must be 2 or more"),
        ("relative_patch", {"patch": 0}, "patch is 0: it must be 1 or more"),
        ("relative_patch", {"gap": -1}, "gap is -1: it must be 0 or more"),
        ("relative_patch", {"jitter": -1}, "jitter is -1: it must be 0 or more"),
        ("relative_patch", {"dropout": 1.0}, r"dropout is 1.0: it must be in \[0, 1\)"),
        ("relative_patch", {"colours": "two"}, "colours is two: it must be one of all, one"),
        ("relative_patch", {"pairs": "some"}, "pairs is some: it must be one of one, all, centre"),
        (
            "jigsaw",
            {"grid": 2, "permutations": 25},
            r"permutations is 25, but 2x2 tiles .* have 24: set --config.jigsaw.permutations=24",
        ),
        ("jigsaw", {"permutations": 362881}, "permutations is 362881, but 3x3 .* have 362880"),
        ("jigsaw", {"first": 362880}, "first is 362880, but .* numbered from 0"),
        ("jigsaw", {"drawn": 7}, "drawn is 7, more than jigsaw.permutations=6"),
        ("jigsaw", {"grid": 4}, "grid is 4: it must be 2 or 3: of more tiles there are too many"),
        ("jigsaw", {"order": "random"}, "order is random: it must be one of lexicographic, matlab"),
        ("jigsaw", {"patch": 9, "jitter": 3}, r"patch=2 --config.jigsaw.jitter=0, or "),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(method, fields, said):
    c = recipe(method)
    for name, value in fields.items():
        recipes.put(c, f"{method}.{name}", value)
    with pytest.raises(UserError, match=said) as refused:
        validation.validate(c, 1)
    assert "\n" not in str(refused.value)


def test_a_view_with_a_size_of_its_own_is_what_patches_are_cut_from():
    c = recipe("jigsaw")
    c.augment.views.first.size = 5
    with pytest.raises(UserError, match=r"views have 5: set .*augment.views.first.size=6"):
        validation.validate(c, 1)
    c.augment.views.first.size, c.data.image_size = 6, 5
    validation.validate(c, 1)
    c.augment.views.first.size = None
    recipes.put(c, "data.image_size", placeholder(int))  # chosen when images are known
    validation.validate(c, 1)


@pytest.mark.parametrize("method", ["relative_patch", "jigsaw"])
def test_gray_images_have_no_colour_to_drop(method):
    gray = Images(tiny.sorted_images().pixels[..., :1], None, 0)
    c = recipe(method, eval__probe=False, eval__knn=False)
    pretrain.check(c, tiny.timetable(c), gray)
    recipes.put(c, f"{method}.colours", "one")
    with pytest.raises(UserError, match=rf"{method}.colours is one, but the images are gray"):
        pretrain.check(c, tiny.timetable(c), gray)


def test_another_first_permutation_makes_another_set():
    sets = [
        jigsaw.far_apart(9, 6, *how).tolist()
        for how in ((0, "lexicographic"), (1, "lexicographic"), (0, "matlab"))
    ]
    assert sets[0] != sets[1] != sets[2] and math.factorial(9) == 362880
    for fields, want in zip(({}, {"first": 1}, {"order": "matlab"}), sets, strict=True):
        c = recipe("jigsaw", **fields)
        views = {"patches": jnp.zeros((1, 9, 2, 2, 3))}
        keys = Keys(0, jnp.int32(0), jnp.zeros((1, 2), jnp.uint32))
        (text,) = made(c).show(views, keys).answers
        number, _, order = text.partition(": ")
        assert [int(tile) - 1 for tile in order.split()] == want[int(number)]
