"""What the embeddings of a checkpoint look like: spread, map, neighbours, confusions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from simclr_jax.reporting import charts
from simclr_jax.reporting.findings import Confusion, confusions
from simclr_jax.reporting.page import (
    Html,
    Section,
    element,
    figure,
    grid,
    join,
    paragraph,
    picture,
    section,
    table,
)
from simclr_jax.reporting.sheet import PNG, thumbnail

MOST_CELLS = 30  # classes of a confusion matrix that can be read
MAPPED = 64  # pixels of the longer side of a picture on a map
WORST = 10  # classes, or errors, in a table


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Two views of images at one tap.

    Attributes:
      indicators: alignment, uniformity and effective rank.
      positives: cosine similarities of the two views of an image, `[n]`.
      negatives: of views of different images.
      width: of an embedding.
    """

    indicators: Mapping[str, float]
    positives: np.ndarray
    negatives: np.ndarray
    width: int


@dataclasses.dataclass(frozen=True)
class Tile:
    """An image in a row of neighbours; `similarity` and `agrees` are None for the query."""

    pixels: np.ndarray
    said: str
    similarity: float | None = None
    agrees: bool | None = None


@dataclasses.dataclass(frozen=True)
class Judged:
    """Right and wrong predictions: `counts` `[C, C]` by label and prediction, and whose."""

    counts: np.ndarray
    names: Sequence[str]
    what: str

    @property
    def errors(self) -> list[Confusion]:
        return confusions(self.counts, self.names)


@dataclasses.dataclass(frozen=True)
class Examined:
    """What was computed from a checkpoint.

    Attributes:
      checkpoint: `WORKDIR@STEP`.
      images: what the images are and how many, in words.
      pairs: by tap.
      points: `[m, 2]`, a map of images, or None where there are too few.
      method: how it was drawn, in words.
      labels: int `[m]`, of these images, -1 for unknown; None without labels, or where an image may
        have several.
      class_names: by label.
      neighbours: rows of a held-out image and those of the bank nearest to it.
      judged: predictions, or None without labels, or of `many` classes.
      several: an image may have several labels.
      many: there are too many classes for a matrix of all.
      learned: so many of the last points are of training images, the others of held-out ones.
      pictures: some images on the map, by the rows of their points.
    """

    checkpoint: str
    images: str
    pairs: Mapping[str, Pairs]
    points: np.ndarray | None
    method: str
    labels: np.ndarray | None
    class_names: Sequence[str]
    neighbours: Sequence[Sequence[Tile]]
    judged: Judged | None
    several: bool = False
    many: bool = False
    learned: int = 0
    pictures: Sequence[tuple[int, np.ndarray]] = ()


def geometry(name: str, found: Examined) -> Html:
    """Return the indicators and the histograms of similarities of one run."""
    rows = [
        [
            tap,
            f"{pairs.width:,}",
            *(f"{pairs.indicators[n]:.3g}" for n in ("alignment", "uniformity", "effective_rank")),
            f"{separation(pairs.positives, pairs.negatives):.1%}",
        ]
        for tap, pairs in found.pairs.items()
    ]
    header = ["", "dimensions", "alignment", "uniformity", "effective rank", "told apart"]
    legend = charts.legend(["two views of one image", "views of different images"])
    figures = [
        figure(
            f"Cosine similarity of {tap}",
            charts.histograms(
                [("one image", pairs.positives), ("different images", pairs.negatives)],
                f"Cosine similarities of {tap}: medians {np.median(pairs.positives):.2f} for views "
                f"of one image, {np.median(pairs.negatives):.2f} for those of different images",
                "cosine similarity",
            ),
            legend=legend,
        )
        for tap, pairs in found.pairs.items()
    ]
    count = max((len(pairs.positives) for pairs in found.pairs.values()), default=0)
    drawn = paragraph(f"Two views each of {count:,} held-out images, drawn by seed 0.", kind="note")
    return join([_heading(name), drawn, table(header, rows), grid(figures)])


def separation(positives: np.ndarray, negatives: np.ndarray) -> float:
    """Return how often a positive is more similar than a negative; a tie counts half."""
    ranked = np.sort(negatives)
    below = np.searchsorted(ranked, positives, side="left")
    equal = np.searchsorted(ranked, positives, side="right") - below
    return float(np.mean((below + equal / 2) / max(1, len(ranked))))


def embedding_map(name: str, found: Examined) -> Html:
    """Return the map of one run."""
    if found.points is None:
        return join([_heading(name), paragraph("There are too few images for a map.")])
    groups, names, note = _groups(found, len(found.points))
    about = f"Map of {len(found.points)} embeddings, {found.method}"
    legend = charts.legend(names, marks=True) if names else ""
    learned = f" and {found.learned:,} training" if found.learned else ""
    said = f"{len(found.points) - found.learned:,} held-out{learned} images. {found.method}{note}"
    dots = charts.scatter_map(found.points, groups, names, about)
    if not found.pictures:
        return figure(name, dots, said, legend)
    some = [(row, thumbnail(pixels, MAPPED)) for row, pixels in found.pictures]
    about = f"Pictures of {len(some)} of {len(found.points)} images where their embeddings lie"
    shown = charts.picture_map(found.points, some, about)
    if not names:  # dots of one colour say less than pictures do
        return figure(name, shown, f"{len(some)} of {said}")
    more = figure("", shown, f"The same map: {len(some)} of these images.")
    return join([figure(name, dots, said, legend), more])


def _groups(found: Examined, images: int) -> tuple[np.ndarray, list[str], str]:
    """Return the group of each of the images, the groups' names, and what to say of them."""
    if found.labels is None:
        why = "Without labels there are no colours."
        if found.several:
            why = "There are no colours, for an image may have several labels."
        return np.full(images, -1), [], f" {why}"
    names = list(found.class_names)
    if len(names) <= charts.MOST_GROUPS:
        return found.labels, names, ""
    known = found.labels[found.labels >= 0]
    common = np.argsort(-np.bincount(known, minlength=len(names)), kind="stable")
    shown = np.sort(common[: charts.COLOURS * 2])
    groups = np.full(len(names), -1)
    groups[shown] = np.arange(len(shown))
    note = f" The {len(shown)} commonest of {len(names)} classes are coloured."
    # The last group is of images without a label, whose number is -1.
    return np.append(groups, -1)[found.labels], [names[i] for i in shown], note


def neighbours(name: str, found: Examined) -> Html:
    """Return rows of images and those nearest to them."""
    rows = [
        element("div", *(_tile(tile) for tile in row), class_="row") for row in found.neighbours
    ]
    return join([_heading(name), element("div", *rows, class_="neighbours")])


def _tile(tile: Tile) -> Html:
    content = thumbnail(tile.pixels)
    said: list[object] = [element("b", tile.said)] if tile.said else []
    if tile.similarity is not None:
        said += [Html("<br>") if said else "", f"{tile.similarity:.3f}"]
    shown = picture(content, tile.said or "image", "pixels" if content.startswith(PNG) else "")
    caption = element("figcaption", *said)
    return element(
        "figure", shown, caption, **({"class_": "wrong"} if tile.agrees is False else {})
    )


def confusion(name: str, found: Examined) -> Html:
    """Return the matrix of a few classes, or the worst of many."""
    judged = found.judged
    if judged is None:
        why = "Without labels there is none."
        if found.several:
            why = "There is none, for an image may have several labels."
        elif found.many:
            why = f"There is none, for {len(found.class_names):,} classes are too many."
        return join([_heading(name), paragraph(why)])
    counts = judged.counts
    accuracy = np.trace(counts) / max(1, counts.sum())
    parts: list[object] = [_heading(name)]
    each = counts.sum(axis=1)
    said = (
        f"Of {judged.what}: {accuracy:.1%} of {counts.sum():,} images are right. Always to guess "
        f"{judged.names[int(each.argmax())]}, the commonest of them, is right in "
        f"{each.max() / max(1, each.sum()):.1%}."
    )
    parts.append(paragraph(said))
    if len(judged.names) <= MOST_CELLS:
        drawn = charts.heat_map(counts, judged.names, f"Confusion matrix of {judged.what}")
        parts.append(element("div", drawn, class_="matrix"))
        note = "Rows: label. Columns: prediction. Colour: the share of the row."
        parts.append(paragraph(note, kind="note"))
    else:
        parts.append(_worst(judged))
    rows = [[e.label, e.guess, f"{e.count:,}", f"{e.share:.0%}"] for e in judged.errors]
    if rows:
        header = ["label", "taken for", "images", "of the label's"]
        parts += [element("h3", "Commonest errors"), table(header, rows, text=2, stacks=False)]
    return join(parts)


def _worst(judged: Judged) -> Html:
    counts = judged.counts
    images = counts.sum(axis=1)
    right = np.where(images > 0, np.diag(counts) / np.maximum(images, 1), np.inf)
    rows = [
        [judged.names[i], f"{images[i]:,}", f"{right[i]:.0%}"]
        for i in np.argsort(right, kind="stable")[:WORST]
        if images[i]
    ]
    return join(
        [
            element("h3", "Classes with the most errors"),
            table(["class", "images", "right"], rows, stacks=False),
        ]
    )


def _heading(name: str) -> Html:
    return element("h3", name) if name else Html()


def sections(examined: Mapping[str, Examined | str]) -> list[Section]:
    """Return all sections about embeddings, each with a part for every run.

    Args:
      examined: by run, what was computed, or why nothing was.
    """
    found = {name: x for name, x in examined.items() if isinstance(x, Examined)}
    missing = [
        paragraph(f"{name}: {why}" if len(examined) > 1 else why, kind="note")
        for name, why in examined.items()
        if isinstance(why, str)
    ]
    if not found:
        return [section("Embeddings", *missing)]
    named = [(name if len(examined) > 1 else "", x) for name, x in found.items()]
    about = [paragraph(f"Checkpoint {x.checkpoint}; {x.images}.", kind="note") for _, x in named]
    told = (
        "Alignment is the mean squared distance of the two views of an image (0: equal), "
        "uniformity is lower the more evenly embeddings cover the sphere, effective rank is how "
        "many dimensions they fill, and told apart is how often two views of one image are more "
        "similar than views of two."
    )
    mapped = "Images that the encoder finds alike lie close together; the axes mean nothing."
    near = (
        "Left: held-out images. Right: the training images nearest to each by cosine similarity of "
        "h."
    )
    dashed = (
        " Dashed: of another class." if any(x.labels is not None for x in found.values()) else ""
    )
    return [
        section(
            "Spread of the embeddings",
            paragraph(told),
            *about,
            *missing,
            *(geometry(*one) for one in named),
        ),
        section("Map", paragraph(mapped), grid([embedding_map(*one) for one in named], "maps")),
        section(
            "Nearest neighbours", paragraph(near + dashed), *(neighbours(*one) for one in named)
        ),
        section("Confusion", *(confusion(*one) for one in named)),
    ]
