"""All results of a run, their intervals, what others have published, and tests between runs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from simclr_jax.errors import UserError
from simclr_jax.evaluate import significance
from simclr_jax.judging import shown
from simclr_jax.reporting import charts, published
from simclr_jax.reporting.page import (
    Html,
    Section,
    details,
    element,
    join,
    paragraph,
    section,
    table,
)
from simclr_jax.reporting.record import Record

TESTED = (*significance.LINEAR, *significance.RANKED)
FIRST = ("top-1", "mean per class", "mAP", "11-point mAP", "top-5")  # the order of columns
SHOWN = ("data", "features", "tap")  # what a row says anyway


def results(records: Sequence[Record]) -> Section:
    """Return tables of everything in RUN/results."""
    parts = [part for record in records for part in _of_run(record, len(records) > 1)]
    if not parts:
        return section(
            "Results",
            paragraph(
                "There are none. The end of a run on labelled images writes some; for others ",
                element("code", "python -m simclr_jax.linear_probe --checkpoint=RUN --data=DATA"),
                " scores the encoder on labelled images of your choice.",
            ),
        )
    parts.append(paragraph("In brackets: 95 % bootstrap interval over test images.", kind="note"))
    return section("Results", *parts, *_tests(records), *_published(records), *_transfer(records))


def _of_run(record: Record, named: bool) -> Iterator[Html]:
    if named and (record.results or record.summary):
        yield element("h3", record.name)
    if record.results:
        yield _table(record.results)
        yield details("Protocol of each", *(_protocol(result) for result in record.results))
    if record.summary:
        yield _summary(record.summary)


def _table(results: Sequence[Mapping[str, Any]]) -> Html:
    there = dict.fromkeys(name for result in results for name in result["scores"])
    scores = [n for n in FIRST if n in there] + [n for n in there if n not in FIRST]
    rows = []
    for result in results:
        data = result.get("data", {})
        test = data.get("test", {})
        step = result.get("checkpoint", {}).get("step", "")
        images = f"{test['images']:,}" if "images" in test else ""
        where = f"{data.get('name', '')} {test.get('split', '')}".strip()
        cells = [score(result["scores"].get(name)) for name in scores]
        rows.append(
            [
                result["name"],
                result.get("solver", ""),
                result.get("tap", ""),
                where,
                images,
                step,
                *cells,
            ]
        )
    for name, level in shown.levels(results).items():
        rows.append([name, *[""] * 5, *(score(level.get(n)) for n in scores)])
    return table(["result", "solver", "tap", "data", "images", "step", *scores], rows, text=4)


def score(found: Mapping[str, float] | None) -> Html | str:
    """Show a score, a fraction with the ends of its interval, as a percentage and a bar."""
    if not found:
        return ""
    value = found.get("value", found.get("accuracy"))
    low, high = found.get("low"), found.get("high")
    if value is None:
        return ""
    if low is None or high is None:
        return f"{100 * value:.1f}"
    said = f"{100 * value:.1f} ({100 * low:.1f} to {100 * high:.1f})"
    return join([charts.interval_bar(value, low, high), " ", said], "")


def _protocol(result: Mapping[str, Any]) -> Html:
    settings = [
        [element("code", name), _shown(value)] for name, value in result.get("protocol", {}).items()
    ]
    return join([element("h4", result["name"]), table((), settings, text=2)], "")


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_shown(v)}" for name, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_shown(v) for v in value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _summary(summary: Mapping[str, Any]) -> Html:
    """Show what the end of pretraining compared."""
    scores, protocol = summary.get("scores", {}), summary.get("protocol", {})
    names = list(dict.fromkeys(name for found in scores.values() for name in found))
    rows = [[thing, *(score(found.get(n)) for n in names)] for thing, found in scores.items()]
    settings = [[element("code", name), _shown(value)] for name, value in protocol.items()]
    step = f" (step {protocol['step']})" if "step" in protocol else ""
    parts = [
        element("h4", f"At the end of the run{step}"),
        table(["accuracy on held-out images, %", *names], rows),
        details("Protocol", table((), settings, text=2)),
    ]
    return join(parts)


def _tests(records: Sequence[Record]) -> list[Html]:
    """Compare results of one name between runs, where they were judged on the same examples."""
    rows, reasons = [], {}
    for one, other in itertools.combinations(records, 2):
        first, second = ({r["name"]: r for r in run.results} for run in (one, other))
        for name in sorted(one.outputs.keys() & other.outputs.keys() & first.keys()):
            metrics = [m for m in first[name]["scores"] if m in TESTED]
            test = _scored_on(first[name])
            if metrics and (test is None or test != _scored_on(second[name])):
                reasons[f"{name}, {one.name} and {other.name}"] = "scored on different images"
                continue
            for metric in metrics:
                try:
                    found = significance.permutation_test(
                        one.outputs[name], other.outputs[name], metric
                    )
                except (UserError, KeyError) as error:
                    reasons[f"{name}, {one.name} and {other.name}"] = str(error)
                    continue
                difference = f"{100 * found['difference']:+.1f}"
                pair = f"{one.name} − {other.name}"  # noqa: RUF001
                rows.append([name, pair, metric, difference, f"{found['p']:.2g}"])
    if not (rows or reasons):
        return []
    parts = [element("h3", "Are the differences more than chance?")]
    if rows:
        said = "Paired permutation test: were the runs alike, a difference as large would be "
        header = ["result", "runs", "score", "difference, points", "p"]
        parts += [paragraph(f"{said}seen with probability p."), table(header, rows, text=3)]
    parts += [paragraph(f"Not tested: {n}: {why}.", kind="note") for n, why in reasons.items()]
    return parts


def _scored_on(result: Mapping[str, Any]) -> Any:
    """Return what tells the images a result was scored on from others, None if it does not say."""
    return result.get("data", {}).get("test")


def _published(records: Sequence[Record]) -> list[Html]:
    """Return what others report for the data sets of these results."""
    names = [record.recipe.get("data.name", "") for record in records]
    names += [r.get("data", {}).get("name", "") for record in records for r in record.results]
    parts: list[Html] = []
    for name in dict.fromkeys(published.data_set(name) for name in names):
        rows = [
            [row.network, row.judged, row.source, row.epochs, row.batch, f"{100 * row.top1:.1f}"]
            for row in published.beside(name)
        ]
        if rows:
            header = ["network", "judged by", "source", "epochs", "batch", "top-1"]
            parts += [element("h3", f"Published for {name}"), table(header, rows, text=3)]
    return parts


def _transfer(records: Sequence[Record]) -> list[Html]:
    """Put results of transfer beside the published ones that their files quote, in per cent."""
    quoting = [
        (one, result) for one in records for result in one.results if result.get("published")
    ]
    methods = list(dict.fromkeys(m for _, result in quoting for m in result["published"]))
    rows = []
    for one, result in quoting:
        metric = result.get("metric", "")
        ours = result["scores"].get(metric, {}).get("value")
        said = [
            f"{100 * result['published'][m]:.1f}" if m in result["published"] else ""
            for m in methods
        ]
        data = result.get("data", {}).get("name", result["name"])
        rows.append([data, one.name, metric, _percent(ours), *said])
    if not rows:
        return []
    header = ["data", "run", "score", "here", *methods]
    return [element("h3", "Transfer, beside published results"), table(header, rows, text=3)]


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"
