"""What a run is and how it went: head of the page, curves, picture of views."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from simclr_jax.declaration import Chart
from simclr_jax.reporting import charts
from simclr_jax.reporting.charts import Series
from simclr_jax.reporting.findings import Finding
from simclr_jax.reporting.page import (
    Html,
    Section,
    details,
    element,
    figure,
    grid,
    join,
    paragraph,
    picture,
    section,
)
from simclr_jax.reporting.record import Record

HIDDEN = ("epoch", "segment")  # metrics that say nothing a step does not


CHARTS = (
    Chart("Loss", {"loss": "loss"}),
    Chart(
        "Accuracy on held-out images",
        {"knn_accuracy": "kNN", "probe_accuracy": "linear probe", "accuracy": "classifier"},
        True,
    ),
    Chart("Accuracy on training images", {"train_accuracy": "classifier"}, True),
    Chart(
        "As the teacher",
        {"agreement": "training images", "held_out_agreement": "held-out images"},
        True,
        "How often student and teacher choose the same class of an image.",
    ),
    Chart("Learning rate", {"lr": "rate"}),
    Chart("Gradient norm", {"gradient_norm": "gradient"}, False, "L2 norm over all parameters."),
    Chart(
        "Parameter norm",
        {"parameter_norm": "parameters"},
        False,
        "L2 norm over all parameters, before the update.",
    ),
    Chart(
        "Update norm",
        {"update_norm": "update"},
        False,
        "L2 norm of what a step adds to the parameters.",
    ),
    Chart(
        "Effective rank",
        {"effective_rank_h": "h", "effective_rank_z": "z"},
        False,
        "Dimensions that the embeddings fill. A fall towards 1 is collapse.",
    ),
    Chart(
        "Alignment",
        {"alignment_h": "h", "alignment_z": "z"},
        False,
        "Mean squared distance of the two views of an image on the sphere. 0: equal.",
    ),
    Chart(
        "Uniformity",
        {"uniformity_h": "h", "uniformity_z": "z"},
        False,
        "Lower: spread more evenly over the sphere. 0: all in one place.",
    ),
    Chart("Images per second", {"images_per_second": "images/s"}, False, "Of training alone."),
    Chart(
        "Waiting for images",
        {"input_wait": "waiting"},
        True,
        "Share of the time in which the devices have nothing to work on.",
    ),
)


def head(records: Sequence[Record], written: str) -> Html:
    """Return the title, what the runs are in a sentence each, and the figures looked for first."""
    names = " · ".join(record.name for record in records)
    said = [paragraph(_sentence(r, len(records) > 1), kind="lead") for r in records]
    tiles = _tiles(records[0]) if len(records) == 1 else ""
    small = paragraph(f"Written by simclr_jax, {written}.", kind="note")
    return element("header", element("h1", names), *said, tiles, small)


def _sentence(record: Record, named: bool) -> Html:
    r = record.recipe
    depth, width = r.get("model.depth"), r.get("model.width")
    network = f"ResNet-{depth}" + (f" of width {width:g}x" if width else "") if depth else "network"
    data = r.get("data.path") or r.get("data.source") or "images"
    data = f"{data}:{r['data.name']}" if r.get("data.name") else data
    count = f", {record.examples:,} images" if record.examples else ""
    start = element("b", record.name, ": ") if named else ""
    stage = {
        "finetune": "Fine-tuning on labels",
        "distill": "Distillation into a student",
        "convert": "Converted weights",
    }
    what = stage.get(r.get("stage", ""), "A run")
    if record.method:
        what = f"{record.method.title} pretraining"
    return join([start, f"{what} of a {network} on {data}{count}. {state(record)}"], "")


def state(record: Record) -> str:
    """Say how far a run is, and whether it is still going."""
    total = record.total_steps
    if not record.curves:
        return f"It holds the checkpoint of step {max(record.saved, default=0)} and no curves."
    where = f"step {record.step:,}" + (f" of {total:,}" if total else "")
    if record.segments:
        where += f" (planned for {record.segments[0].first_step:,}, then extended)"
    if total and record.step >= total:
        return f"Finished: {where}."
    saved = f"; newest checkpoint: step {record.saved[-1]:,}" if record.saved else ""
    return f"{'Under way' if record.alive else 'Not finished, and not running'}: {where}{saved}."


def _tiles(record: Record) -> Html:
    found: list[tuple[str, str]] = []

    def add(metric: str, called: str, form: str) -> None:
        if metric in record.curves and np.isfinite(record.curves[metric].last):
            found.append((form.format(record.curves[metric].last), called))

    add("loss", "loss", "{:.3f}")
    add("contrast_accuracy", "partner found", "{:.1%}")
    add("knn_accuracy", "kNN, held out", "{:.1%}")
    add("probe_accuracy", "linear probe, held out", "{:.1%}")
    add("accuracy", "classifier, held out", "{:.1%}")
    add("epoch", "epochs", "{:.1f}")
    speed = record.curves.get("images_per_second")
    if speed is not None and np.isfinite(speed.median):
        found.append((f"{speed.median:,.0f}", "images/s, median"))
    if record.devices:
        found.append((record.devices, "devices"))
    tiles = [element("div", element("b", v), element("span", n), class_="tile") for v, n in found]
    return element("div", *tiles, class_="tiles")


def stands_out(found: Mapping[str, Sequence[Finding]]) -> Section:
    """Return the findings of each run."""
    parts: list[object] = []
    for name, items in found.items():
        if len(found) > 1:
            parts.append(element("h3", name))
        if not items:
            parts.append(paragraph("None of the checks of this report found a problem."))
            continue
        lines = [
            element("li", item.text, class_="problem" if item.problem else "note") for item in items
        ]
        parts.append(element("ul", *lines, class_="findings"))
    return section("What stands out", *parts)


def curves(records: Sequence[Record]) -> Section:
    """Return a chart for each metric; several runs share charts and one legend."""
    if not any(record.curves for record in records):
        return section("Curves", paragraph("There is no metrics.jsonl in the run."))
    several = len(records) > 1
    shown = _charts(records)
    known = {metric for chart in shown for metric in chart.metrics}
    there = dict.fromkeys(metric for record in records for metric in record.curves)
    main = [figure for chart in shown for figure in _drawn(records, chart)]
    others = [
        shown
        for metric in there
        if metric not in known and metric not in HIDDEN
        for shown in _drawn(records, Chart(metric.replace("_", " "), {metric: metric}))
    ]
    legend = charts.legend([record.name for record in records]) if several else ""
    more = details(f"{len(others)} more metrics", grid(others)) if others else ""
    return section("Curves", legend, *_extended(records), grid(main), more)


def _extended(records: Sequence[Record]) -> list[Html]:
    """Say where runs were extended, and how their rate went on."""
    said = []
    for record in records:
        for one in record.segments:
            whose = f"{record.name} was" if len(records) > 1 else "The run was"
            rise = f"rises over {one.warmup_steps:,} steps" if one.warmup_steps else "begins"
            said.append(
                f"{whose} extended at step {one.first_step:,}, to step {one.total_steps:,}, where "
                f"its learning rate {rise} anew, to {one.peak_rate:.4g}; dotted lines show where. "
                "It is another run than one planned as long."
            )
    return [paragraph(text, kind="note") for text in said]


def _charts(records: Sequence[Record]) -> list[Chart]:
    """Return the charts of runs, those that their methods declare after loss and accuracy."""
    declared: list[Chart] = []
    for record in records:
        charts = record.method.charts if record.method else ()
        declared += [chart for chart in charts if chart not in declared]
    return [*CHARTS[:2], *declared, *CHARTS[2:]]


def _drawn(records: Sequence[Record], chart: Chart) -> list[Html]:
    """Draw a chart: the metrics of one run together, or one metric of several runs.

    What a method declares is drawn of its runs alone: to others the same metric, such as the loss,
    is another thing.
    """
    owns = [r.method is not None and chart in r.method.charts for r in records]
    curves = [
        r.curves if own or not any(owns) else {} for r, own in zip(records, owns, strict=True)
    ]
    present = [m for m in chart.metrics if any(m in known for known in curves)]
    if not present:
        return []
    if len(records) == 1:
        series = [_series(records[0], m, chart.metrics[m], i) for i, m in enumerate(present)]
        legend = charts.legend([chart.metrics[m] for m in present]) if len(present) > 1 else ""
        return [_figure(records, chart, chart.title, series, legend)]
    found = []
    for m in present:
        series = [_series(r, m, r.name, i) for i, r in enumerate(records) if m in curves[i]]
        title = f"{chart.title}, {chart.metrics[m]}" if len(chart.metrics) > 1 else chart.title
        found.append(_figure(records, chart, title, series, ""))
    return found


def _series(record: Record, metric: str, name: str, colour: int) -> Series:
    curve = record.curves[metric]
    return Series(name, curve.steps, curve.values, colour)


def _figure(
    records: Sequence[Record], chart: Chart, title: str, series: Sequence[Series], legend: object
) -> Html:
    reference = _chance(records) if "loss" in chart.metrics else None
    said = [f"{s.name} ends at {charts.written(s.y[-1], chart.percent)}" for s in series]
    about = f"{title} over steps: {'; '.join(said)}"
    until = max(record.step for record in records)
    borders = sorted({one.first_step for record in records for one in record.segments})
    drawn = charts.line_chart(
        series,
        about,
        percent=chart.percent,
        reference=reference,
        until=until,
        borders=[border for border in borders if border <= until],
    )
    caption = chart.caption
    if any(len(s.x) > charts.MOST_POINTS for s in series):
        caption += " Line: mean of neighbouring steps; band: their range."
    return figure(title, drawn, caption.strip(), legend)


def _chance(records: Sequence[Record]) -> tuple[float, str] | None:
    """Return the loss of an encoder that has learned nothing, if it is the same for all runs."""
    found = {record.chance for record in records}
    value = found.pop()
    return None if found or value is None else (value, "nothing learned")


def views(records: Sequence[Record]) -> Section:
    """Return the pictures of views, one for runs whose pictures are the same."""
    shown = _pictures(
        records, {r.name: r.views for r in records}, "training images and their views"
    )
    if not shown:
        return section("Views", paragraph("There is no views.png in the run."))
    said = "The first images of the run, and below each what training saw of it."
    return section("Views", paragraph(said), *shown)


def painted(records: Sequence[Record]) -> list[Section]:
    """Return what networks that answer with pictures make of held-out images; [] if none does."""
    about = "held-out images as they were given, what the network makes of them, what was wanted"
    shown = _pictures(records, {r.name: r.painted for r in records}, about)
    if not shown:
        return []
    said = (
        "Held-out images. Above what the network was given, below it what it made of that at the "
        "last evaluation, and at the bottom what was wanted."
    )
    return [section("Reconstructions", paragraph(said), *shown)]


def _pictures(
    records: Sequence[Record], found: Mapping[str, bytes | None], about: str
) -> list[Html]:
    """Return figures of the pictures of runs, one for runs whose pictures are the same."""
    pictures: dict[bytes, list[str]] = {}
    for name, content in found.items():
        if content:
            pictures.setdefault(content, []).append(name)
    return [
        figure(", ".join(names) if len(records) > 1 else "", picture(content, about, "sheet"))
        for content, names in pictures.items()
    ]
