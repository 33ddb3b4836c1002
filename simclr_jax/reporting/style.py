"""The style sheet of pages: one set of variables for text, tables and charts."""

from __future__ import annotations

# Six colours that differ from each other by at least 0.15 in OKLab for normal, deuteranope and
# protanope eyes (Machado et al. 2009), and from the background by a contrast of 3.1.
LIGHT = ("#118ef6", "#bf8400", "#5d1b3d", "#b75d91", "#5c5e04", "#243da9")
DARK = ("#94acf1", "#db9c26", "#d33f5b", "#65f3ef", "#eaf348", "#955dcf")
COLOURS = len(LIGHT)


def _colours(values: tuple[str, ...]) -> str:
    return " ".join(f"--c{i}: {value};" for i, value in enumerate(values))


_VARIABLES = f"""
:root {{
  color-scheme: light dark;
  --paper: #ffffff; --raised: #f5f6f8; --ink: #1b1d21; --soft: #5b616b; --line: #dcdfe4;
  --grid: #e8eaee; --accent: #0b62c4; --heat: #0b62c4; --wrong: #c2410c; --on-heat: #ffffff;
  --rest: #b4b9c2;
  {_colours(LIGHT)}
}}
@media (prefers-color-scheme: dark) {{
  :root {{
    --paper: #15171b; --raised: #1e2126; --ink: #e8eaed; --soft: #a3a9b3; --line: #343941;
    --grid: #272b31; --accent: #7db4ff; --heat: #7db4ff; --wrong: #ff9966; --on-heat: #0e1013;
    --rest: #5a606a;
    {_colours(DARK)}
  }}
}}
"""

_TEXT = """
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial,
    "Liberation Sans", sans-serif;
}
main { max-width: 74rem; margin: 0 auto; padding: 2rem clamp(1rem, 4vw, 3rem) 4rem; }
h1 { font-size: clamp(1.5rem, 1.2rem + 1.6vw, 2.2rem); line-height: 1.2; margin: 0 0 .4rem;
  letter-spacing: -.015em; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; line-height: 1.3; margin: 0 0 .6rem; letter-spacing: -.01em; }
h3 { font-size: .95rem; line-height: 1.35; margin: 0 0 .35rem; font-weight: 600; }
h4 { font-size: .875rem; margin: 1.4rem 0 .3rem; color: var(--soft); }
section > h3, .scroll + h3, details + h3 { margin-top: 1.7rem; }
section { margin-top: 3rem; padding-top: 1.4rem; border-top: 1px solid var(--line); }
p { max-width: 46rem; margin: .5rem 0 .9rem; }
p.lead { font-size: 1.06rem; }
p.note, figcaption, summary, .small { color: var(--soft); font-size: .875rem; line-height: 1.5; }
a { color: var(--accent); }
code { font: .9em ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  overflow-wrap: anywhere; }
nav { display: flex; flex-wrap: wrap; gap: .15rem 1.1rem; font-size: .9rem; margin-top: 1.2rem; }
details { margin: 1rem 0; }
summary { cursor: pointer; }
details[open] > summary { margin-bottom: .6rem; }
"""

_PARTS = """
.tiles { display: grid; gap: .8rem; margin: 1.4rem 0 0;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 8.4rem), 1fr)); }
.tile { background: var(--raised); border-radius: 8px; padding: .7rem .9rem; }
.tile b { display: block; font-size: 1.4rem; line-height: 1.25; font-weight: 650;
  font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.tile span { color: var(--soft); font-size: .82rem; }
ul.findings { list-style: none; padding: 0; margin: .6rem 0; max-width: 54rem; }
ul.findings li { padding: .5rem .9rem; margin: .5rem 0; background: var(--raised);
  border-left: 4px solid var(--rest); border-radius: 0 6px 6px 0; }
ul.findings li.problem { border-left-color: var(--wrong); }
h2, h3, h4, p, .legend { overflow-wrap: anywhere; }
.scroll { overflow-x: auto; margin: .6rem 0 1rem; }
table { border-collapse: collapse; font-size: .9rem; }
th, td { text-align: left; padding: .32rem 1.1rem .32rem 0; vertical-align: top;
  border-bottom: 1px solid var(--line); }
th { font-weight: 600; color: var(--soft); white-space: nowrap; border-bottom-width: 2px; }
th.number, td.number { text-align: right; font-variant-numeric: tabular-nums;
  padding: .32rem 0 .32rem 1.1rem; white-space: nowrap; }
td > code { overflow-wrap: normal; }
tr > :last-child { padding-right: .2rem; }
.columns { columns: 20rem 3; column-gap: 2.5rem; }
.columns > * { break-inside: avoid; }
.columns table { width: 100%; }
.columns h4 { margin-top: 0; }
.grid { display: grid; gap: 1.8rem 2.2rem; margin: 1.2rem 0; }
.grid.charts { grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); }
.grid.maps { grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); }
.grid.maps > figure { max-width: 44rem; }
figure { margin: 0; min-width: 0; }
figcaption { margin-top: .35rem; max-width: 46rem; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg.bar { width: 6rem; height: 1rem; display: inline-block; vertical-align: -.15rem; }
svg.key { width: .95rem; height: .95rem; display: inline-block; vertical-align: -.1rem;
  margin-right: .35rem; flex: none; }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1rem; font-size: .82rem; color: var(--soft);
  margin: 0 0 .35rem; }
.legend span { display: inline-flex; align-items: center; overflow-wrap: anywhere; }
img { max-width: 100%; height: auto; }
img.sheet { border: 1px solid var(--line); border-radius: 4px; background: #fff; }
.pixels { image-rendering: pixelated; }
.neighbours, .matrix { overflow-x: auto; padding: 3px; margin: 0 -3px; }
.row { display: grid; gap: .5rem;
  grid-template-columns: minmax(5rem, 6.8rem) repeat(8, minmax(4.2rem, 6rem));
  margin: 0 0 .9rem; min-width: max-content; }
.row > figure:first-child { padding-right: .7rem; border-right: 2px solid var(--line); }
.row img { width: 100%; aspect-ratio: 1; object-fit: contain; display: block; border-radius: 3px;
  background: var(--raised); }
.row figcaption { font-size: .76rem; line-height: 1.3; margin-top: .2rem; width: 100%;
  overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
.row .wrong img { outline: 2px dashed var(--wrong); outline-offset: 1px; }
.row .wrong figcaption b { color: var(--wrong); }
.row b { font-weight: 600; color: var(--ink); }
"""

# Of sheets of images. What a row compares with stands to the left, on a phone above; the others
# wrap, so that a page is never wider than its window.
_SHEETS = """
.row.alike { grid-template-columns: minmax(5rem, 9rem) 1fr; min-width: 0; }
.others { display: grid; gap: .5rem;
  grid-template-columns: repeat(auto-fill, minmax(6.2rem, 1fr)); align-content: start; }
.row.pair { grid-template-columns: 1fr 1fr; min-width: 0; }
.row.pair > figure:first-child { padding-right: 0; border-right: 0; }
.pairs { display: grid; gap: .5rem 2rem;
  grid-template-columns: repeat(auto-fill, minmax(14rem, 1fr)); }
@media (max-width: 40rem) {
  .row.alike { grid-template-columns: 1fr; }
  .row.alike > figure:first-child { display: grid; grid-template-columns: 6rem 1fr; gap: .7rem;
    align-items: end; padding-right: 0; border-right: 0; }
  .others { grid-template-columns: repeat(auto-fill, minmax(4.6rem, 1fr)); }
  .pairs { gap: .3rem 1rem; grid-template-columns: repeat(auto-fill, minmax(9.4rem, 1fr)); }
  .pairs .row, .others figure { margin-bottom: 0; }
  .others figcaption, .pairs figcaption { font-size: .68rem; }
  .stacks table, .stacks tbody, .stacks thead, .stacks thead tr { display: block; }
  .stacks td:empty, .stacks th:not(:first-child) { display: none; }
  .stacks thead:has(th:first-child:empty) { display: none; }
  .stacks th { border: 0; }
  .stacks tr { display: block; padding: .45rem 0; border-bottom: 1px solid var(--line); }
  .stacks td { display: flex; justify-content: space-between; gap: .8rem; padding: .08rem 0;
    border: 0; text-align: right; overflow-wrap: break-word; }
  .stacks td.number { padding: .08rem 0; white-space: normal; }
  .stacks td svg { width: 3.4rem; margin-left: auto; }
  .stacks td:first-child { display: block; text-align: left; font-weight: 600; }
  .stacks td::before { content: attr(data-label); color: var(--soft); text-align: left;
    overflow-wrap: anywhere; min-width: 6rem; }
}
"""

_CHARTS = """
svg text { font: 11px system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial,
  "Liberation Sans", sans-serif; fill: var(--soft); font-variant-numeric: tabular-nums; }
.gridline { stroke: var(--grid); stroke-width: 1; }
.axis { stroke: var(--rest); stroke-width: 1; }
.line { fill: none; stroke-width: 1.75; stroke-linejoin: round; stroke-linecap: round; }
.band { stroke: none; opacity: .18; }
.reference { stroke: var(--soft); stroke-width: 1; stroke-dasharray: 4 3; }
.border { stroke: var(--soft); stroke-width: 1; stroke-dasharray: 1 3; }
.range { fill: none; stroke-width: 4; opacity: .5; }
.area { fill-opacity: .28; stroke-width: 1.5; stroke-linejoin: round; }
.map-label { font-size: 14px; font-weight: 650; fill: var(--ink); stroke: var(--paper);
  stroke-width: 3.5px; paint-order: stroke; stroke-linejoin: round; }
.rest { fill: var(--rest); }
.cell { fill: var(--heat); }
.cell.off { fill: var(--wrong); }
svg .count { fill: var(--ink); font-size: 12px; }
svg .count.on { fill: var(--on-heat); }
@media print { section { break-inside: avoid-page; } details { display: none; } }
"""

# Elements of charts take the colour of their number by one class, filled or drawn.
_NUMBERED = "\n".join(
    f".s{i} {{ stroke: var(--c{i}); }} .f{i} {{ fill: var(--c{i}); }}" for i in range(COLOURS)
)

CSS = _VARIABLES + _TEXT + _PARTS + _SHEETS + _CHARTS + _NUMBERED + "\n"
