"""What is printed of an evaluation.

What is judged; then a table with what guessing would give, notes and comparisons.
"""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from simclr_jax import declaration, tables
from simclr_jax.evaluate import chance, significance
from simclr_jax.judging import datasets
from simclr_jax.judging.datasets import Data
from simclr_jax.judging.feature_bank import Say
from simclr_jax.stages import scored as run_scored
from simclr_jax.stages.encoder import Encoder
from simclr_jax.unlabelled import counted

LABEL = 30  # letters of the first column of a grid
UNTRAINED = " untrained"  # ends what `Encoder.untrained` calls a run
MAIN = ("top-1", "mAP")  # of these the one there is, is compared with guessing


@dataclasses.dataclass(frozen=True)
class Scored:
    """One line of the table: what was judged, its result file's content and its arrays.

    `way` is the solver with its settings, as names of results have it.
    """

    encoder: Encoder
    result: dict[str, Any]
    arrays: dict[str, np.ndarray]
    way: str


def announce(encoder: Encoder, data: Data, solvers: Sequence[str], chooses: bool, say: Say) -> None:
    """Say what is judged, on which images; `chooses`: settings are, on a split of its own."""
    model, p = encoder.config.model, encoder.preprocessing
    say(f"run       {encoder.run}: ResNet-{model.depth}, width {model.width:g}")
    of = "all of it" if p.proportion == 1 else f"its central {p.proportion:.1%}"
    say(f"images    {data.name}, each to {p.size}x{p.size} pixels, {of}, grid {p.grid}")
    uses = {"fit": "to learn from", "choose": "to choose on", "score": "to be scored on"}
    sources = {"fit": data.fit, "choose": data.choose, "score": data.score}
    counts = [
        f"{len(source)} {uses[role]} ({data.splits[role]})"
        for role, source in sources.items()
        if source is not None and (role != "choose" or chooses)
    ]
    say(f"splits    {', '.join(counts)}")
    if data.choose is not None and not chooses:
        say(
            f"note      {data.splits['choose']} ({len(data.choose)} images) is not used: on such a "
            "split lbfgs and mlp alone choose, and only with --labels=all"
        )
    if data.fit.channels != encoder.channels:
        how = "repeated" if encoder.channels == 3 else "reduced to their luminance"
        say(
            f"note      images have {data.fit.channels} channel(s), the encoder takes "
            f"{encoder.channels}: they are {how}"
        )
    if data.slug and "classifier" in solvers:
        say(
            "note      the classifier's classes are taken to be those of these data, in their order"
        )
    for note in data.notes:
        say(f"note      {note}")


def who_counts(fit: np.ndarray, score: np.ndarray, data: Data, learn: bool, say: Say) -> None:
    """Say which images have no label, and which classes cannot be told apart or learned."""
    parts = [("to be scored on", data.score), *([("to learn from", data.fit)] if learn else [])]
    for which, source in parts:
        if missing := len(source) - len(counted(source.labels)):
            say(f"note      {missing} of {len(source)} images {which} have no label: left out")
    if score.ndim == 1 and (score == score[0]).all():
        say(f"note      {run_scored.ONE_CLASS}")
    unseen = np.setdiff1d(score, fit) if learn and fit.ndim == 1 else np.zeros(0, int)
    if len(unseen):
        names = datasets.class_names(data.score)
        say(
            f"note      {len(unseen)} class(es) occur among the images scored on only, such as "
            f"{names[int(unseen[0])]}: they count as errors"
        )


def table(found: Sequence[Scored]) -> list[str]:
    """Show scores in per cent and their intervals: a row for each result, and one for guessing.

    What is the same in all rows of a table stands above it.
    """
    groups: dict[str, list[Scored]] = {}
    for one in found:
        kind = one.result["solver"]
        groups.setdefault(kind if kind in ("kmeans", "retrieval") else "classes", []).append(one)
    lines = []
    for group in groups.values():
        names = list(dict.fromkeys(name for one in group for name in one.result["scores"]))
        facts = [_facts(one) for one in group]
        if not any(one.encoder.run.endswith(UNTRAINED) for one in group):
            facts = [{word: fact[word] for word in fact if word != "weights"} for fact in facts]
        words = list(dict.fromkeys(word for fact in facts for word in fact))
        rows = [[fact.get(word, "") for word in words] for fact in facts]
        said, words, rows, _ = tables.common(words, rows, len(words))
        if said:
            said = textwrap.fill(said, tables.WIDTH, break_on_hyphens=False)
        for row, one in zip(rows, group, strict=True):
            row += [_percent(one.result["scores"].get(name)) for name in names]
        for name, scored in levels([one.result for one in group]).items():
            blank = [""] * (len(words) - 1)
            rows.append([name, *blank, *(_percent(scored.get(n)) for n in names)])
        lines += ["", *([said] if said else []), tables.table((*words, *names), rows, len(words))]
    return [*lines, "in %; in brackets: 95 % bootstrap interval over the images scored on", ""]


def _facts(one: Scored) -> dict[str, str]:
    """Return what tells a row from others, the coarsest first."""
    r = one.result
    run = one.encoder.run.removesuffix(UNTRAINED)
    learned = r.get("protocol", {}).get("labels used", "none")
    return {
        "run": run,
        "weights": "trained" if run == one.encoder.run else "untrained",
        "data": r.get("data", {}).get("name", ""),
        "solver": r.get("variant", r["solver"]),
        "tap": r["tap"],
        "labels": learned.partition(", crc32")[0],
    }


def grid(found: Sequence[Scored]) -> list[str]:
    """Show the first score of each way to judge: rows of runs, columns of taps, in 80 columns.

    Below each score stands its interval; a last row has that of guessing.
    """
    lines = []
    for way in dict.fromkeys(one.way for one in found):
        some = [one for one in found if one.way == way]
        metric = next(iter(some[0].result["scores"]))
        taps = list(dict.fromkeys(one.result["tap"] for one in some))
        rows: list[tuple[str, ...]] = []
        for run in dict.fromkeys(one.encoder.run for one in some):
            of_run = {one.result["tap"]: one for one in some if one.encoder.run == run}
            scored = [of_run[tap].result["scores"] if tap in of_run else {} for tap in taps]
            first = next(iter(of_run.values())).encoder
            rows.append((_kind(first), *(_value(scores.get(metric)) for scores in scored)))
            rows.append((_shortened(f"  {run}"), *(_ends(s.get(metric)) for s in scored)))
        for name, scores in levels([one.result for one in some]).items():
            rows.append((_shortened(name), *[_value(scores.get(metric))] * len(taps)))
        lines += ["", tables.folded((f"{metric} in %, {way}", *taps), rows)]
    return [*lines, "below each score: 95 % bootstrap interval over the images scored on", ""]


def _kind(encoder: Encoder) -> str:
    """Return what a run was trained by: its method, or its stage."""
    config = encoder.config
    trained = config.stage if config.stage != "pretrain" else declaration.group(config.method)
    return trained if encoder.step else f"{trained}, untrained"


def _shortened(text: str) -> str:
    """Leave out the beginning of a place that would take more room than its end needs."""
    return text if len(text) <= LABEL else f"  ...{text[len(text) - LABEL + 5 :]}"


def levels(results: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the scores of guessing by the name of the row; one row where all results have one."""
    found: dict[str, dict[str, Any]] = {}
    for result in results:
        if level := result.get("level"):
            data = result.get("data", {})
            where = f"{data.get('name', '')} {data.get('test', {}).get('split', '')}".strip()
            found.setdefault(where, {}).update(level["scores"])
    if len(found) == 1:
        return {chance.COMMONEST: next(iter(found.values()))}
    return {f"{chance.COMMONEST} of {where}": scored for where, scored in found.items()}


def notes(found: Sequence[Scored]) -> Iterator[str]:
    """Yield what must be said of results: settings that could not be kept, scores by chance."""
    named: dict[str, list[str]] = {}
    for one in found:
        for note in one.result.get("notes", ()):
            named.setdefault(note, []).append(one.result["name"])
    yield from (f"{', '.join(dict.fromkeys(of))}: {note}" for note, of in named.items())
    yield from by_chance(found)


def by_chance(found: Sequence[Scored]) -> Iterator[str]:
    """Yield a sentence for each result that is not above what guessing gives."""
    for one in found:
        result = one.result
        level = result.get("level", {}).get("scores", {})
        for metric in MAIN:
            if metric not in level or metric not in result["scores"]:
                continue
            value, guess = result["scores"][metric]["value"], level[metric]["value"]
            if value <= guess:
                yield chance.sentence(f"{result['name']}, {metric}", value, guess)


def comparisons(found: Sequence[Scored]) -> Iterator[str]:
    """Say of each result whether it differs from that of the first run by more than chance."""
    for one in found:
        first = next(f for f in found if f.result["name"] == one.result["name"])
        names = [n for n in significance.LINEAR + significance.RANKED if n in one.result["scores"]]
        same = first.result["data"]["test"] == one.result["data"]["test"]
        if first is one or not same or not names or "examples" not in one.arrays:
            continue
        test = significance.permutation_test(one.arrays, first.arrays, names[0])
        yield (
            f"{one.encoder.run} against {first.encoder.run}, {one.result['name']}: {names[0]} "
            f"{100 * test['difference']:+.1f} points, p = {test['p']:.2g} "
            f"(paired permutation test, {test['samples']} samples)"
        )


def _value(score: dict[str, float] | None) -> str:
    return "-" if score is None else f"{100 * score['value']:.1f}"


def _ends(score: dict[str, float] | None) -> str:
    if score is None or "low" not in score:
        return ""
    return f"{100 * score['low']:.1f}-{100 * score['high']:.1f}"


def _percent(score: dict[str, float] | None) -> str:
    if score is None:
        return "-"
    interval = f" ({100 * score['low']:.1f}-{100 * score['high']:.1f})" if "low" in score else ""
    return f"{100 * score['value']:.1f}{interval}"
