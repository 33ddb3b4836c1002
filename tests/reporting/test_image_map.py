"""The map of a report: which images it is drawn of, and which of them are shown as pictures."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from simclr_jax.data.sources import Images
from simclr_jax.judging.feature_bank import Features
from simclr_jax.reporting import embedding_sections, image_map, page, recipe_section, sheet
from simclr_jax.reporting.embedding_sections import Examined
from simclr_jax.reporting.style import CSS


def features(first, count, labels=True):
    """Return features of `count` images whose first number is theirs in all: from `first` on."""
    x = np.stack([np.arange(first, first + count), np.ones(count)], 1).astype(np.float32)
    known = (np.arange(first, first + count) % 3).astype(np.int32) if labels else None
    return Features(x, known, 3 * labels, np.arange(count))


def images(first, count):
    pixels = np.zeros((count, 9, 9, 3), np.uint8) + np.arange(first, first + count)[
        :, None, None, None
    ].astype(np.uint8)
    return Images(pixels, None, 0)


@pytest.mark.parametrize("held, bank, drawn", [(80, 720, 800), (80, 5000, 1000), (1500, 700, 1500)])
def test_training_images_join_where_few_are_held_out(held, bank, drawn):
    x, labels, rows = image_map.joined(features(0, held), features(held, bank))
    assert len(x) == len(labels) == drawn and len(rows) == drawn - held
    np.testing.assert_array_equal(x[:held, 0], np.arange(held))  # held-out ones come first
    np.testing.assert_array_equal(x[held:, 0], held + rows)
    np.testing.assert_array_equal(labels, x[:, 0].astype(int) % 3)
    assert len(set(rows)) == len(rows)
    again = image_map.joined(features(0, held), features(held, bank))[2]
    np.testing.assert_array_equal(rows, again)
    unlabelled = image_map.joined(features(0, held), features(held, bank, labels=False))
    assert unlabelled[1] is None


def test_pictures_are_spread_over_the_map():
    points = np.random.default_rng(0).normal(size=(700, 2)) * [3, 1]
    rows = image_map.spread(points)
    side = np.ptp(points, axis=0).max() / image_map.CELLS
    chosen = points[rows]
    distances = np.abs(chosen[:, None] - chosen[None]).max(-1) + 9 * side * np.eye(len(rows))
    assert 15 < len(rows) <= image_map.CELLS**2 and distances.min() > 0.85 * side
    # No point is far from a picture.
    assert np.abs(points[:, None] - chosen[None]).max(-1).min(1).max() < 2 * side
    assert len(image_map.spread(np.zeros((5, 2)))) == 1


def test_each_picture_is_that_of_its_place(monkeypatch):
    """Pixels tell the image: of held-out images first, then of the rows of the bank."""
    monkeypatch.setattr(image_map, "MOST", 100)
    held, bank = features(0, 40), features(40, 150)
    _, _, rows = image_map.joined(held, bank)
    points = np.random.default_rng(0).normal(size=(100, 2))
    found = image_map.pictures(points, held, bank, rows, (images(0, 40), images(40, 150)))
    assert {place >= 40 for place, _ in found} == {True, False}
    for place, pixels in found:
        number = place if place < 40 else 40 + rows[place - 40]
        assert (pixels == number).all()


def examined(labels):
    points = np.array([[0.0, 0.0], [4.0, 0.0], [4.0, 2.0]])
    pictures = [(row, np.full((9, 9, 3), 50 * row, np.uint8)) for row in (0, 2)]
    names = ["a", "b"] if labels is not None else []
    return Examined(
        "run@7", "", {}, points, "PCA.", labels, names, [], None, learned=1, pictures=pictures
    )


@pytest.mark.parametrize("labels", [None, np.array([0, 1, 1])])
def test_pictures_lie_where_their_points_do(labels):
    shown = str(embedding_sections.embedding_map("", examined(labels)))
    assert "2 held-out and 1 training images" in shown
    assert shown.count("<svg") - shown.count('class="key"') == (1 if labels is None else 2)
    found = re.findall(
        r'<image x="([-\d.]+)" y="([-\d.]+)" [^>]* href="data:image/png;base64,([^"]+)"',
        shown,
    )
    (first, second) = [
        (float(x), float(y), np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))).mean())
        for x, y, data in found
    ]
    assert (first[2], second[2]) == (0, 100)
    assert second[0] - first[0] == pytest.approx(2 * (first[1] - second[1]), abs=0.2) and (
        second[1] < first[1]  # up is up
    )


def test_every_class_of_a_page_is_in_the_style_sheet():
    """A class that nothing styles is a layout that nobody sees, on a phone say."""
    cell = sheet.Cell("name", "0.99", None)
    pages = [
        sheet.sheet("t", [], [("one", [[cell] * 4]), ("two", [[cell] * 2] * 300)], ["line"]),
        page.page(
            "t", "", [page.section("m", embedding_sections.embedding_map("", examined(None)))]
        ),
    ]
    for text in pages:
        body = text.partition("</style>")[2]
        used = {name for group in re.findall(r'class="([^"]+)"', body) for name in group.split()}
        assert used and {name for name in used if f".{name}" not in CSS} == set()
        assert 'style="grid' not in body
    # Most of many pairs are folded away.
    at_once, _, folded = pages[0].partition("<details>")
    assert at_once.count("<figure") < sheet.FOLDED < folded.count("<figure")


# What differs between recipes ---------------------------------------------------------------------


def views(**of_views):
    return {
        f"augment.views.{view}.{field}": value
        for view, fields in of_views.items()
        for field, value in fields.items()
    }


SAME = {"flip": 0.5, "blur": 0.0}


@pytest.mark.parametrize(
    "runs, want",
    [
        ([views(first=SAME, second=SAME), views(first=SAME)], {}),
        (
            [views(first=SAME, second=SAME), views(first=SAME | {"flip": 0})],
            {"augment.views.*.flip": [0.5, 0]},
        ),
        (
            [views(first=SAME, second=SAME), views(first=SAME, second=SAME | {"blur": 0.1})],
            {"augment.views.second.blur": [0.0, 0.1]},
        ),
    ],
    ids=["another number of views", "another value", "one of two views"],
)
def test_views_that_do_not_differ_are_no_difference(runs, want):
    folded = recipe_section._folded(runs)
    fields = dict.fromkeys(field for one in folded for field in one)
    differing = {
        field: [one.get(field) for one in folded]
        for field in fields
        if len({one.get(field) for one in folded}) > 1
    }
    assert differing == want
