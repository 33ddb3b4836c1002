"""Which embedded images look like an image, or nearly like each other."""

from __future__ import annotations

import dataclasses
import functools
import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from simclr_jax import alive, files
from simclr_jax.data import decode
from simclr_jax.data.decode import BadImage, Rules
from simclr_jax.data.sources import NO_LABEL
from simclr_jax.embedding import embeddings
from simclr_jax.embedding.embeddings import Embeddings
from simclr_jax.embedding.pictures import Pictures, source_run
from simclr_jax.errors import UserError, printable
from simclr_jax.evaluate import knn, retrieval
from simclr_jax.judging.feature_bank import Say
from simclr_jax.reporting.sheet import Cell, sheet, thumbnail
from simclr_jax.stages.encoder import Encoder, check_tap
from simclr_jax.train import saved

K = 12  # nearest images, where nothing else is asked for
SPREAD = 12  # queries, where none is given
SPOKEN_QUERIES, SPOKEN_IMAGES, SPOKEN_PAIRS = 4, 5, 20  # printed; the sheet has all
ALIKE = 0.02  # of the images: those looked at where a threshold is proposed
PICTURED_PAIRS, LISTED_PAIRS = 300, 20_000  # in the sheet, as thumbnails and as text


@dataclasses.dataclass(frozen=True)
class Options:
    """What to look for in which file.

    Attributes:
      embeddings: what `embed` has written.
      query: images, each a file or a name in the embeddings, or several with commas.
      k: nearest images; None: `K`, or all others where there are fewer.
      duplicates: similarity of the pairs to list, or None.
      out: the sheet; None: beside the embeddings.
      images: where the images are: a directory, or what `embed --data` takes; "": where the file
        says, if it is of this user's `embed`.
      checkpoint: the run that encodes queries which are not in the file; "": likewise.
      seed: of the choice of images without a query.
    """

    embeddings: str
    query: Sequence[str] = ()
    k: int | None = None
    duplicates: float | None = None
    out: str | None = None
    images: str = ""
    checkpoint: str = ""
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Query:
    """An image to compare with: one of the file (`row`), or another with its features."""

    name: str
    row: int | None = None
    pixels: np.ndarray | None = None
    feature: np.ndarray | None = None


def run(options: Options, say: Say = print) -> None:
    """Search, print the first lines of what is found, and write the sheet.

    Raises:
      UserError: if the file holds no embeddings, a query cannot be read or encoded, `k` is out of
        its range, or no image can be shown.
    """
    found = embeddings.read(options.embeddings)
    given = Path(options.embeddings)
    out = embeddings.writable(options.out or str(given.with_suffix(".html")), "--out", (".html",))
    k = _checked_k(options.k, len(found))
    least = options.duplicates
    if least is not None and not 0 < least <= 1:
        raise UserError(f"--duplicates={least} must be above 0 and at most 1")
    for note in found.notes:
        say(f"note      {note}")
    pictures = Pictures(found, options.images, options.checkpoint)
    sections, listed = [], []
    if options.query or least is None:
        with alive.during("looking for the nearest images", say):
            queries = _queries(options, found) if options.query else _spread(found, options.seed)
            rows = [_nearest(query, found, k, pictures) for query in queries]
        _say_rows(rows, say)
        some = "" if options.query else f" of {len(rows)} images, chosen at random"
        sections.append((f"Nearest images{some}", rows))
    if least is not None:
        with alive.during(f"comparing {len(found)} images with each other", say):
            rows, lines = _pairs(found, least, pictures)
        title = f"{len(lines)} pairs of similarity {least:g} or more"
        shown = lines[: PICTURED_PAIRS + LISTED_PAIRS]
        if len(shown) < len(lines):
            title += f", of which the sheet has the first {len(shown)}"
        say("\n".join((title, *lines[:SPOKEN_PAIRS])))
        if len(shown) > SPOKEN_PAIRS:
            say(f"... and {len(shown) - SPOKEN_PAIRS} more, in the sheet")
        if note := _other_threshold(found, least, len(lines)):
            say(f"note      {note}")
        sections.append((title, rows))
        listed = shown[PICTURED_PAIRS:]
    pictures.check(say)
    about = [*_about(found), pictures.where, *found.notes]
    page = sheet(f"Search in {given.name}", about, sections, listed)
    files.sweep(out.parent)
    files.write_atomically(out, page)
    say(f"sheet     {out}")


def _queries(options: Options, found: Embeddings) -> list[Query]:
    """Return the images asked for, those that are not in the file encoded as it was."""
    position = {str(name): row for row, name in enumerate(found.names)}
    directory = options.images or found.about["directory"]
    encoder = functools.cache(lambda: _encoder(found, options.checkpoint))
    queries = []
    for text in _split(options.query, position):
        row = position.get(text)
        if row is None and directory:
            row = position.get(printable(_below(text, directory)))  # as embed has named it
        pixels = None if row is not None else _read_query(text, found, options.embeddings, encoder)
        queries.append(Query(text, row, pixels))
    if not queries:
        raise UserError(f"--query={','.join(options.query)} names no image: give one, or several")
    others = [query.pixels for query in queries if query.row is None]
    if not others:
        return queries
    features = iter(encoder()(others, tap=found.about["tap"]))
    return [
        query if query.row is not None else dataclasses.replace(query, feature=next(features))
        for query in queries
    ]


def _split(texts: Sequence[str], names: dict[str, int]) -> list[str]:
    """Split each text at its commas, unless the whole of it is a name or a file."""
    whole = [[text] if text in names or _is_file(text) else text.split(",") for text in texts]
    return [text for some in whole for text in some if text]


def _is_file(text: str) -> bool:
    try:
        return Path(files.expand_home(text)).is_file()
    except UserError:  # no file can have this name, which may be several
        return False


def _below(path: str, directory: str) -> str:
    """Return the path of a file relative to a directory that it lies in, or ""."""
    try:
        absolute, root = (Path(files.expand_home(one)).absolute() for one in (path, directory))
    except UserError:
        return ""
    return str(absolute.relative_to(root)) if absolute.is_relative_to(root) else ""


def _read_query(
    text: str, found: Embeddings, file: str, encoder: Callable[[], Encoder]
) -> np.ndarray:
    if not _is_file(text):
        raise UserError(
            f"--query={text} is no file, and no name in {file} (which has names such as "
            f'"{printable(str(found.names[0]))}")'
        )
    path = Path(files.expand_home(text))
    try:
        with decode.within_memory(lambda: f"--query={text}"):
            encoded = decode.content(path)
            decode.size(io.BytesIO(encoded))  # no image at all, which is known before there are
            return decode.decode(encoded, Rules.of(encoder().config.data))  # weights
    except BadImage as error:
        raise UserError(f"--query={text} cannot be used: {error}") from error
    except OSError as error:
        raise UserError(f"--query={text} cannot be read: {error.strerror or error}") from error


def _encoder(found: Embeddings, checkpoint: str) -> Encoder:
    run, kind = source_run(found, checkpoint), found.about.get("kind", saved.TRAINED)
    encoder = Encoder.of(saved.of_weights(run, kind, "the weights of the embeddings"))
    check_tap("the embeddings' tap", found.about["tap"], encoder.config)
    if encoder.fingerprint != found.about["weights"]:
        raise UserError(
            f"{encoder.run} is not the checkpoint that made the embeddings any more: run "
            "python -m simclr_jax.embed again"
        )
    return encoder


def _spread(found: Embeddings, seed: int) -> list[Query]:
    """Choose images at random, one from each of as many equal parts of the set."""
    generator = np.random.Generator(np.random.Philox(seed))
    parts = np.array_split(np.arange(len(found)), min(SPREAD, len(found)))
    rows = [int(part[generator.integers(len(part))]) for part in parts]
    return [Query(str(found.names[row]), row) for row in rows]


def _nearest(query: Query, found: Embeddings, k: int, pictures: Pictures) -> list[Cell]:
    if query.row is not None:
        similarity, rows = retrieval.others(found.features, k, [query.row])
        picture = pictures(query.row)
    else:
        assert query.feature is not None and query.pixels is not None
        similarity, rows = knn.neighbours(found.features, query.feature[None], k)
        picture = thumbnail(query.pixels)
    cells = [
        Cell(_described(found, row), f"{s:.3f}", pictures(row))
        for s, row in zip(similarity[0], rows[0].tolist(), strict=True)
    ]
    name = query.name if query.row is None else _described(found, query.row)
    return [Cell(name, "query", picture), *cells]


def _pairs(
    found: Embeddings, similarity: float, pictures: Pictures
) -> tuple[list[list[Cell]], list[str]]:
    """Return rows of two for the most similar pairs, and a line for each pair."""
    values, pairs = retrieval.similar_pairs(found.features, similarity)
    lines = [
        f"  {value:.4f}  {printable(str(found.names[a]))}  {printable(str(found.names[b]))}"
        for value, (a, b) in zip(values, pairs, strict=True)
    ]
    rows = [
        [Cell(_described(found, row), f"{value:.4f}", pictures(row)) for row in pair]
        for value, pair in zip(values[:PICTURED_PAIRS], pairs.tolist(), strict=False)
    ]
    return rows, lines


def _other_threshold(found: Embeddings, least: float, pairs: int) -> str:
    """Return a sentence that gives a better threshold than `least`, or "" where that is fine.

    More pairs than images are no near duplicates, but the likeness of the whole set.
    """
    if 0 < pairs <= len(found):
        return ""
    similarity = retrieval.others(found.features, 1)[0][:, 0]  # of each to its nearest, [m]
    if not pairs:
        best = _rounded_down(float(similarity.max()))
        return f"no two images are so alike: --duplicates={best} lists the nearest two"
    high = _rounded_down(float(np.quantile(similarity, 1 - ALIKE)))
    if high <= least:
        return ""
    return (
        f"more pairs than images ({len(found)}), which all look much alike to this encoder: "
        f"--duplicates={high} lists the {ALIKE:.0%} that have the nearest neighbours"
    )


def _rounded_down(similarity: float) -> float:
    """Return a similarity with four digits, so that it finds what it was measured of."""
    return math.floor(similarity * 1e4) / 1e4


def _described(found: Embeddings, row: int) -> str:
    """Return the name of an image, and its class unless a directory in its name says it."""
    name, names = str(found.names[row]), found.about["class_names"]
    if found.labels is None or not names or found.about["directory"]:
        return name
    labels = np.atleast_1d(found.labels[row])
    several = found.labels.ndim == 2  # where -1 is a class to be ignored
    shown = np.flatnonzero(labels == 1) if several else labels[labels != NO_LABEL]
    said = ", ".join(f"class {names[i]}" if names[i].isdecimal() else names[i] for i in shown)
    return f"{name}: {said}" if said else name


def _say_rows(rows: list[list[Cell]], say: Say) -> None:
    for query, *others in rows[:SPOKEN_QUERIES]:
        say(f"query     {printable(query.name)}")
        for cell in others[:SPOKEN_IMAGES]:
            say(f"  {cell.caption}   {printable(cell.name)}")
    if len(rows) > SPOKEN_QUERIES:
        say(f"... and {len(rows) - SPOKEN_QUERIES} more queries in the sheet")


def _checked_k(k: int | None, count: int) -> int:
    if count < 2:
        raise UserError(f"there are {count} embedded images: a search needs at least 2")
    if k is None:
        return min(K, count - 1)
    if not 1 <= k < count:
        raise UserError(f"--k={k}, but there are {count} images: choose 1 to {count - 1}")
    return k


def _about(found: Embeddings) -> list[str]:
    about = found.about
    where = f" from {about['directory']}" if about["directory"] else ""
    return [
        f"{len(found)} images{where}, embedded by {about['checkpoint']} at the tap "
        f"{about['tap']}. Numbers are cosine similarities: 1 is the same direction."
    ]
