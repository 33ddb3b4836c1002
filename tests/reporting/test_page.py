"""The page: text stays text, nothing is asked of the network, and every style exists."""

from __future__ import annotations

import base64
import html.parser
import re

import numpy as np

from simclr_jax.reporting import charts, page
from simclr_jax.reporting.page import Html
from simclr_jax.reporting.style import CSS

EVIL = "<script>alert('x')</script> & \"quoted\""


class Reader(html.parser.HTMLParser):
    """Checks that elements close in order; collects text and attributes."""

    VOID = frozenset(("meta", "link", "img", "br", "wbr"))

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def whole():
    """Return a page with one of everything, given only names that would break it."""
    chart = charts.line_chart(
        [charts.Series(EVIL, np.arange(3.0), np.arange(3.0))], EVIL, reference=(1.0, EVIL)
    )
    parts = [
        page.paragraph(EVIL, kind="note"),
        page.table(["", EVIL], [[EVIL, 1]]),
        page.grid([page.figure(EVIL, chart, EVIL, charts.legend([EVIL, "b"]))]),
        page.details(EVIL, page.picture(b"\x89PNG1234", EVIL)),
        charts.heat_map(np.eye(2, dtype=int), [EVIL, EVIL], EVIL),
        charts.scatter_map(np.random.RandomState(0).rand(9, 2), np.arange(9) % 3, [EVIL] * 3, EVIL),
        charts.histograms([(EVIL, np.arange(9.0))], EVIL, EVIL),
        charts.interval_bar(0.5, 0.4, 0.6),
    ]
    return page.page(EVIL, page.element("h1", EVIL), [page.section("All", *parts)])


def test_text_is_escaped_everywhere():
    read = Reader(whole())
    assert "script" not in read.tags
    assert sum(EVIL in said for said in read.text) >= 10
    assert any(name == "aria-label" and value == EVIL for name, value in read.attributes)


def test_markup_is_kept():
    assert page.element("p", Html("<b>x</b>"), "<i>") == "<p><b>x</b>&lt;i&gt;</p>"


def test_nothing_is_loaded_and_nothing_runs():
    read = Reader(whole())
    for name, value in read.attributes:
        assert not name.startswith("on")
        if name in ("src", "href"):
            assert value.startswith(("data:", "#"))
    assert not re.search(r"url\(|@import", CSS)
    policy = next(v for n, v in read.attributes if n == "content" and "default-src" in v)
    assert "default-src 'none'" in policy and "script" not in policy


def test_on_a_phone_each_cell_says_what_it_is():
    """The heads of columns are out of sight there, and so would be all but the first columns."""
    header = ["result", page.element("code", "a<b"), EVIL]
    read = Reader(page.table(header, [["x", 1, 2], ["y", "", 4]]))
    labels = [value for name, value in read.attributes if name == "data-label"]
    assert labels == ["a<b", EVIL] * 2  # text, whose markup is gone; a row's own head has none
    assert ("class", "scroll stacks") in read.attributes
    assert ".stacks td::before { content: attr(data-label)" in CSS
    # The first column's head stays in sight, for it may be the one that tells the unit.
    assert ".stacks th:not(:first-child) { display: none; }" in CSS
    for plain in (page.table(header, [["x", 1, 2]], stacks=False), page.table((), [["x", 1]])):
        read = Reader(plain)
        assert ("class", "scroll") in read.attributes
        assert not any(name == "data-label" for name, _ in read.attributes)


def test_sections_can_be_reached():
    said = page.page("t", "", [page.section("Nearest neighbours", "x"), page.section("Map")])
    read = Reader(said)
    links = [value[1:] for name, value in read.attributes if name == "href" and value[0] == "#"]
    assert links == [value for name, value in read.attributes if name == "id"]
    assert len(links) == 2


def test_pictures_are_within_the_page():
    for content, form in ((b"\x89PNG\r\nabc", "png"), (b"\xff\xd8abc", "jpeg")):
        said = page.picture(content, "an image")
        encoded = re.search(rf'src="data:image/{form};base64,([^"]+)"', said)[1]
        assert base64.b64decode(encoded) == content


def test_every_variable_has_a_light_and_a_dark_value():
    light, dark = CSS.split("prefers-color-scheme: dark")
    dark = dark[: dark.index("\n}\n")]
    defined = [set(re.findall(r"(--[\w-]+):", part)) for part in (light, dark)]
    assert defined[0] == defined[1] >= set(re.findall(r"var\((--[\w-]+)\)", CSS))


def test_every_class_has_a_style():
    known = set(re.findall(r"\.([a-z][\w-]*)", CSS))
    used = {c for n, value in Reader(whole()).attributes if n == "class" for c in value.split()}
    assert used <= known
