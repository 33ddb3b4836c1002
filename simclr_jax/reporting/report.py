"""The report of runs: what their files say, and what a checkpoint makes of held-out images."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from simclr_jax import alive, documents, files, recipes
from simclr_jax.data import order
from simclr_jax.data.sources import NO_LABEL, Source
from simclr_jax.errors import UserError, printable
from simclr_jax.evaluate import geometry, knn
from simclr_jax.judging import datasets
from simclr_jax.judging.datasets import Data
from simclr_jax.judging.feature_bank import Features, Say, extract
from simclr_jax.losses.unit import l2_normalize
from simclr_jax.reporting import (
    embedding_sections,
    findings,
    image_map,
    page,
    recipe_section,
    record,
    run_sections,
    score_sections,
)
from simclr_jax.reporting.embedding_sections import Examined, Judged, Pairs, Tile
from simclr_jax.reporting.findings import Finding
from simclr_jax.reporting.record import Record
from simclr_jax.stages import build
from simclr_jax.stages.encoder import Encoder
from simclr_jax.stages.inputs import Inputs
from simclr_jax.stages.monitor import PAIRS
from simclr_jax.stages.views import pair, view_maker
from simclr_jax.train import saved
from simclr_jax.unlabelled import counted

HELD_OUT = 2000  # images, at most, in the confusion matrix, and on the map
BANK = 10_000  # training images, at most, among which neighbours are looked for
ROWS, NEAREST = 10, 8  # of the sheet of neighbours
FEW = 50  # images: fewer make no t-SNE, and their geometry says nothing of collapse
PERPLEXITY, ITERATIONS = 30.0, 1000  # of t-SNE, scikit-learn's defaults
COMPONENTS = 50  # principal components that t-SNE starts from
MOST_CLASSES = 3000  # in a matrix of confusions, which grows with their square
MORE_CLASSES = 1000  # in predictions than in the data, at most
NEGATIVES = 100_000  # similarities, at most, in a histogram


def run(checkpoints: Sequence[str], out: str | None = None, say: Say = print) -> None:
    """Write the report and say where it is.

    Args:
      checkpoints: workdirs, or `WORKDIR@STEP`.
      out: the page; by default report.html in the first workdir.
      say: receives lines about what is done.

    Raises:
      UserError: if there is no run, no such checkpoint, or the page cannot be written.
    """
    records = record.named([record.read(checkpoint) for checkpoint in checkpoints])
    place = epath.Path(files.expand_home(out)) if out else records[0].path / "report.html"
    files.check_file(os.fspath(place), "--out")
    for one in records:
        for sentence in one.damaged:
            say(f"note      {printable(sentence)}")
    examined = {one.name: _examine(one, say) for one in records}
    try:
        files.write_atomically(place, _page(records, examined))
    except OSError as error:
        raise UserError(
            f"the report cannot be written to {place} ({error.strerror or error}): give --out"
        ) from error
    say(f"report    {documents.shown(place)}")


def _page(records: Sequence[Record], examined: dict[str, Examined | str]) -> str:
    found = {}
    for one in records:
        x = examined[one.name]
        measured = _named_indicators(x) if isinstance(x, Examined) else {}
        errors = x.judged.errors if isinstance(x, Examined) and x.judged else ()
        damaged = [Finding(sentence) for sentence in one.damaged]
        found[one.name] = [*damaged, *findings.findings(one, measured, errors)]
    header = run_sections.head(records, time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()))
    sections = [
        run_sections.stands_out(found),
        recipe_section.recipe(records),
        run_sections.curves(records),
        run_sections.views(records),
        *run_sections.painted(records),
        score_sections.results(records),
        *embedding_sections.sections(examined),
    ]
    return page.page(", ".join(one.name for one in records), header, sections)


def _named_indicators(found: Examined) -> dict[str, float]:
    """Return the indicators under the names of metrics, of taps with images enough to tell."""
    enough = {tap: pair for tap, pair in found.pairs.items() if len(pair.positives) >= FEW}
    return {f"{n}_{tap}": v for tap, pair in enough.items() for n, v in pair.indicators.items()}


def _examine(one: Record, say: Say) -> Examined | str:
    """Measure the checkpoint of a run; where that is impossible, say why."""
    if not one.saved:
        return "There is no checkpoint yet, so there is nothing to say about embeddings."
    try:
        return _measured(one, say)
    except UserError as error:  # its images have moved, say: the rest of the report stands
        say(f"note      nothing about embeddings of {one.path}: {error}")
        return f"Nothing can be said about embeddings: {error}."


def _measured(one: Record, say: Say) -> Examined:
    checkpoint = os.fspath(one.path) if one.at is None else f"{one.path}@{one.at}"
    encoder = Encoder.of(saved.read(checkpoint))
    say(f"reading   {encoder.run}")
    with alive.during("opening the images", say):
        data = datasets.open_data(encoder.config, one.path, datasets.Wanted())
    held, learned = _some(data.score, HELD_OUT), _some(data.fit, BANK)
    cache = one.path / "features" if os.access(one.path, os.W_OK) else None
    queries, bank = (
        extract(encoder, source, ("h",), cache, say)["h"] for source in (held, learned)
    )
    x, labels, rows = image_map.joined(queries, bank)
    with alive.during(f"making the map of {len(x)} images", say):
        points, method = project(x)
    names = datasets.class_names(held)
    single = queries.labels is not None and queries.labels.ndim == 1
    many = len(names) > MOST_CLASSES
    with alive.during("measuring pairs of views", say):
        measured = _pairs(encoder, data.score)
    with alive.during("looking for neighbours", say):
        neighbours = _neighbours(queries, bank, held, learned, names)
        judged = _judged(one, encoder, data, queries, bank) if single and not many else None
    return Examined(
        checkpoint=encoder.run,
        images=f"{len(queries):,} held-out and {len(bank):,} training images of {data.name}",
        pairs=measured,
        points=points,
        method=method,
        labels=labels if single else None,
        class_names=names,
        neighbours=neighbours,
        judged=judged,
        several=queries.labels is not None and not single,
        many=many,
        learned=len(rows),
        pictures=[]
        if points is None
        else image_map.pictures(points, queries, bank, rows, (held, learned)),
    )


def _some(source: Source, most: int) -> Source:
    """Return the whole source, or as many of its examples as a report needs, always the same."""
    if len(source) <= most:
        return source
    return source.take(np.sort(order.examples(0, np.arange(most), len(source))))


def _pairs(encoder: Encoder, source: Source) -> dict[str, Pairs]:
    """Compare two views of held-out images: the views of the evaluations during the run.

    The images are drawn, for a folder lists one class after another.
    """
    few = _some(source, PAIRS)
    if len(few) < 2:
        return {}
    config = _two_views(encoder.config)
    batch = Inputs(config, few, few).held_out(PAIRS)
    views = pair(jax.jit(view_maker(config))(batch))
    taps = [tap for tap in ("h", "z") if tap in encoder.taps]
    # Views are what the network sees in training: no evaluation crop is taken of them.
    first, second = (
        encoder.extract(np.asarray(view, np.float32), taps, prepared=True) for view in views
    )
    return {tap: pairs(first[tap], second[tap]) for tap in taps}


def _two_views(config: ConfigDict) -> ConfigDict:
    """Return a recipe of two views or more: stages that learn from labels have one, drawn twice."""
    if any(len(policies) > 1 for policies in build.policies(config).values()):
        return config
    c = recipes.copied(config)
    for view in c.augment.views.values():
        view.copies = 2
    return c


def pairs(first: np.ndarray, second: np.ndarray) -> Pairs:
    """Measure two views of images at one tap, `[n, d]` each, n at least 2."""
    a, b = (_on_sphere(x) for x in (first, second))
    cosines = np.clip(a @ b.T, -1, 1)
    negatives = cosines[~np.eye(len(a), dtype=bool)]
    step = -(-len(negatives) // NEGATIVES)
    return Pairs(
        geometry.indicators(first, second), np.diag(cosines), negatives[::step], a.shape[1]
    )


def project(x: np.ndarray, seed: int = 0) -> tuple[np.ndarray | None, str]:
    """Draw a map of embeddings `[m, d]`: points `[m, 2]`, and how they were found, in words.

    Rows are normalised, so that Euclidean neighbours are those of the cosine. None for fewer than
    3 embeddings, or where all are equal.
    """
    rows = _on_sphere(x).astype(np.float64)
    rows = rows - rows.mean(axis=0)
    if len(rows) < 3 or not np.abs(rows).max() > 1e-6:
        return None, ""
    left, values, _ = np.linalg.svd(rows, full_matrices=False)
    components = (left * values)[:, :COMPONENTS]
    shares = values**2 / np.sum(values**2)
    if len(rows) < FEW or components.shape[1] < 3:
        points = np.pad(components[:, :2], ((0, 0), (0, 2 - min(2, components.shape[1]))))
        return points, f"Two principal components ({shares[:2].sum():.0%} of the variance)."
    from sklearn.manifold import TSNE

    perplexity = min(PERPLEXITY, (len(rows) - 1) / 3)
    tsne = TSNE(perplexity=perplexity, init="pca", max_iter=ITERATIONS, random_state=seed)
    points = tsne.fit_transform(components)
    kept = shares[:COMPONENTS].sum()
    return points, (
        f"t-SNE (perplexity {perplexity:g}, seed {seed}) of {components.shape[1]} principal "
        f"components of h on the sphere ({kept:.0%} of the variance)."
    )


def _on_sphere(x: np.ndarray) -> np.ndarray:
    return np.asarray(l2_normalize(jnp.asarray(x)))


def _neighbours(
    queries: Features, bank: Features, held: Source, learned: Source, names: Sequence[str]
) -> list[list[Tile]]:
    """Find the images of the bank nearest to a few others, as many classes as there is room for."""
    rows = choose_queries(queries.labels, len(queries), ROWS)
    similarity, nearest = knn.neighbours(bank.x, queries.x[rows], min(NEAREST, len(bank)))
    found = []
    for row, cosines, places in zip(rows, similarity, nearest, strict=True):
        own = None if queries.labels is None else queries.labels[row]
        tiles = [Tile(held.example(int(queries.examples[row]))[0], _said(own, names))]
        for cosine, place in zip(cosines, places, strict=True):
            label = None if bank.labels is None else bank.labels[place]
            pixels = learned.example(int(bank.examples[place]))[0]
            agrees = None if _unknown(own) or _unknown(label) else _share_a_class(own, label)
            tiles.append(Tile(pixels, _said(label, names), float(cosine), agrees))
        found.append(tiles)
    return found


def choose_queries(labels: np.ndarray | None, count: int, most: int) -> np.ndarray:
    """Return up to `most` of `count` rows, always the same, of as many classes as possible."""
    shuffled = np.random.Generator(np.random.Philox(0)).permutation(count)
    if labels is None or labels.ndim == 2:
        return np.sort(shuffled[:most])
    # The first of each class come before the second of any.
    turn = np.empty(count, int)
    for label in np.unique(labels):
        members = shuffled[labels[shuffled] == label]
        turn[members] = np.arange(len(members))
    chosen = shuffled[np.argsort(turn[shuffled], kind="stable")][:most]
    return chosen[np.argsort(labels[chosen], kind="stable")]


def _said(label: Any, names: Sequence[str]) -> str:
    if _unknown(label):
        return ""
    if np.ndim(label):
        return ", ".join(names[i] for i in np.flatnonzero(label == 1).tolist()) or "none"
    return names[int(label)]


def _unknown(label: Any) -> bool:
    return label is None or (np.ndim(label) == 0 and label == NO_LABEL)


def _share_a_class(one: Any, other: Any) -> bool:
    if np.ndim(one):
        return bool(np.any((one == 1) & (other == 1)))
    return bool(one == other)


def _judged(
    one: Record, encoder: Encoder, data: Data, queries: Features, bank: Features
) -> Judged | None:
    """Return the predictions of the newest result of these weights and data, else those of kNN."""
    names = datasets.class_names(data.score)
    for result in reversed(one.results):
        outputs = one.outputs.get(result["name"], {})
        same = result.get("checkpoint", {}).get("weights") == encoder.fingerprint
        same = same and result.get("data", {}).get("name") == data.name
        # Whose predictions are those of the pixels, or of weights that were trained since, are not.
        same = same and result.get("tap") != "pixels" and result.get("solver") != "fine-tuning"
        if same and {"labels", "predictions"} <= outputs.keys():
            what = f"the result {result['name']}"
            return _counted(outputs["labels"], outputs["predictions"], names, what)
    if bank.labels is None or queries.labels is None or bank.labels.ndim != 1:
        return None
    bank, queries = (x.take(counted(x.labels)) for x in (bank, queries))
    if not (len(bank) and len(queries)):
        return None
    wanted = encoder.config.eval
    # A number that nobody has set, or counted by, is that of large sets.
    unset = not wanted.knn and wanted.knn_k == recipes.base().eval.knn_k
    k = knn.votes(np.bincount(bank.known)) if unset else min(wanted.knn_k, len(bank))
    guesses = knn.classify(bank.x, bank.labels, queries.x, bank.classes, k, wanted.knn_temperature)
    what = f"kNN on h (k = {k}, temperature {wanted.knn_temperature:g}), computed for this report"
    return _counted(queries.known, guesses, names, what)


def _counted(
    labels: np.ndarray, guesses: np.ndarray, names: Sequence[str], what: str
) -> Judged | None:
    """Count predictions by label; None where they do not fit the classes."""
    labels, guesses = np.asarray(labels, int), np.asarray(guesses, int)
    if labels.ndim != 1 or labels.shape != guesses.shape or not labels.size:
        return None
    classes = max(len(names), int(max(labels.max(), guesses.max())) + 1)
    if min(labels.min(), guesses.min()) < 0 or classes > len(names) + MORE_CLASSES:
        return None
    named = [*names, *(str(i) for i in range(len(names), classes))]
    counts = np.bincount(labels * classes + guesses, minlength=classes**2)
    return Judged(counts.reshape(classes, classes), named, what)
