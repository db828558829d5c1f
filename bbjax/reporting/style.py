"""The style sheet of the page: one set of names, light and dark values, and print."""

CSS = """
:root {
  color-scheme: light dark;
  --ground: #f6f7f9; --card: #ffffff; --ink: #1a2027; --dim: #5a6573;
  --rule: #dde2e8; --grid: #e9edf1; --units: #2a6fb8; --fit: #c24f12;
  --warn: #fff5e6; --warn-edge: #d98a1f; --meter: #dfe8f2; --shade: #1a202766;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #0f1317; --card: #181d23; --ink: #e5e9ee; --dim: #9ba7b4;
    --rule: #2d353f; --grid: #252c35; --units: #6cacf0; --fit: #f29a62;
    --warn: #2b2314; --warn-edge: #d98a1f; --meter: #26313d; --shade: #9ba7b488;
  }
  .mask img, .shade span { filter: brightness(1.25); }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
}
main { max-width: 1240px; margin: 0 auto; padding: 28px clamp(12px, 3vw, 32px) 60px; }
h1, dd, .note, th .path { overflow-wrap: anywhere; }
th .path { display: block; }
summary .path { word-break: break-all; }
h1 { font-size: 1.65rem; line-height: 1.25; margin: 0 0 4px; }
h2 { font-size: 1.1rem; margin: 36px 0 10px; }
h3 { font-size: .95rem; margin: 22px 0 6px; }
p { margin: 4px 0 10px; }
a { color: var(--units); text-decoration: none; }
a:hover, a:focus-visible { text-decoration: underline; }
:focus-visible { outline: 2px solid var(--units); outline-offset: 2px; }
.dim, figcaption small, .card small { color: var(--dim); }
.note {
  background: var(--warn); border-left: 4px solid var(--warn-edge);
  padding: 9px 14px; border-radius: 4px; margin: 10px 0;
}
.cards {
  display: grid; gap: 12px; margin: 20px 0 0; padding: 0;
  grid-template-columns: repeat(auto-fit, minmax(158px, 1fr));
}
.card, .sheet, details {
  background: var(--card); border: 1px solid var(--rule); border-radius: 8px;
}
.card { padding: 11px 14px; }
.card dt { color: var(--dim); font-size: .82rem; }
.card dd { margin: 0; font-size: 1.42rem; font-weight: 600; line-height: 1.35; }
.card dd { white-space: nowrap; }
.card small {
  display: block; font-size: .78rem; font-weight: 400; white-space: normal;
}
/* A shadow lies at each side on which a table goes on; covers of the ground's colour
   scroll with the table and hide it at the ends. */
.sheet {
  overflow-x: auto;
  background:
    linear-gradient(to right, var(--card) 60%, transparent) 0 0 / 36px 100% local,
    linear-gradient(to left, var(--card) 60%, transparent) 100% 0 / 36px 100% local,
    linear-gradient(to right, var(--shade), transparent) 0 0 / 13px 100% scroll,
    linear-gradient(to left, var(--shade), transparent) 100% 0 / 13px 100% scroll,
    var(--card);
  background-repeat: no-repeat;
}
.titled { display: flex; flex-wrap: wrap; align-items: baseline; gap: 0 14px; }
.hint { display: none; color: var(--dim); font-size: .8rem; }
@supports (animation-timeline: --sheet) {
  .box { timeline-scope: --sheet; }
  .sheet { scroll-timeline: --sheet inline; }
  .hint { display: block; max-width: 0; overflow: hidden; white-space: nowrap; }
  .hint { animation: shown auto linear both; animation-timeline: --sheet; }
  @keyframes shown { from { max-width: 100%; } to { max-width: 100%; } }
}
table { border-collapse: collapse; width: 100%; font-size: .86rem; }
th, td {
  text-align: left; padding: 4px 10px; white-space: nowrap;
  border-bottom: 1px solid var(--rule); font-variant-numeric: tabular-nums;
}
tbody tr:last-child > * { border-bottom: 0; }
thead th { color: var(--dim); font-weight: 600; font-size: .79rem; }
thead th { vertical-align: bottom; }
tbody th { font-weight: 500; white-space: normal; min-width: 6.5em; }
.right { text-align: right; }
.path { font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
.bar-of { display: block; height: 4px; border-radius: 2px; background: var(--meter); }
.bar-of i {
  display: block; height: 100%; border-radius: 2px;
  background: var(--units);
}
details { margin: 14px 0; }
.inside { scroll-margin-top: 56px; }
summary { padding: 11px 16px; cursor: pointer; overflow-wrap: anywhere; }
summary strong { font-size: 1.02rem; }
summary span { color: var(--dim); margin-left: 8px; font-size: .87rem; }
.inside { padding: 0 16px 16px; }
.inside .sheet { border-radius: 6px; }
.figures { /* two rows of the grid a figure: captions, and what is below them */
  display: grid; gap: 0 16px; margin: 14px 0 4px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 273px), 1fr));
}
figure {
  margin: 0 0 16px; min-width: 0; display: grid; grid-row: span 2;
  grid-template: subgrid / minmax(0, 1fr);
}
figcaption { align-self: start; }
figcaption { font-size: .86rem; font-weight: 600; margin-bottom: 5px; }
figcaption small { display: block; font-weight: 400; overflow-wrap: anywhere; }
.chart {
  display: block; width: 100%; height: auto; max-width: 420px;
}
.chart text { fill: var(--dim); font-size: 11px; }
.chart .end { text-anchor: end; }
.chart .middle { text-anchor: middle; }
.chart .grid { stroke: var(--grid); }
.chart .axis { stroke: var(--dim); stroke-width: .8; }
.chart .bar { fill: var(--units); }
.chart .tick { font-size: 10px; }
.chart .mean, .chart .halo { stroke-dasharray: 5 4; }
.chart .halo { stroke: var(--card); stroke-width: 4; }
.chart .mean { stroke: var(--fit); stroke-width: 2; }
.chart .range { stroke: var(--units); stroke-width: 2.5; }
.chart .fit { stroke: var(--fit); stroke-width: 1.8; }
.chart path.dot { stroke: var(--units); stroke-width: 5; stroke-linecap: round; }
.chart circle.average { fill: var(--fit); }
.chart path.bound { stroke: var(--dim); }
.chart path.one { stroke-opacity: .72; }
.chart path.some { stroke-opacity: .86; }
.chart path.many { stroke-opacity: 1; }
.legend {
  display: flex; flex-wrap: wrap; gap: 1px 14px; list-style: none; margin: 5px 0 0;
  padding: 0; font-size: .78rem; color: var(--dim);
}
.legend li { display: flex; align-items: center; gap: 6px; }
.key { flex: none; width: 14px; height: 0; }
.key.bar { height: 11px; background: var(--units); }
.key.mean { border-top: 2px dashed var(--fit); }
.key.fit { border-top: 2px solid var(--fit); }
.key.range { width: 3px; height: 13px; background: var(--units); }
.key.dot, .key.average { width: 8px; height: 8px; border-radius: 50%; }
.key.dot { background: var(--units); }
.key.dot.bound { background: var(--dim); }
.key.dot.one { opacity: .72; }
.key.average { background: var(--fit); }
.key.shade { height: 12px; border: 1px solid var(--dim); }
.key.shade span { display: block; height: 100%; background: #2f7fd0; }
.framed {
  display: grid; gap: 3px; justify-content: start; font-size: .75rem; line-height: 1.2;
  grid-template: auto auto / auto auto; color: var(--dim);
}
.framed img { grid-area: 2 / 2; display: block; image-rendering: pixelated; }
.framed img { outline: 1px solid var(--rule); }
.along { display: flex; justify-content: space-between; gap: 5px; white-space: nowrap; }
.along.across { grid-area: 1 / 2; }
.along.down { grid-area: 2 / 1; writing-mode: vertical-rl; }
.tables {
  display: grid; gap: 0 22px; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 380px), 1fr));
}
.tables > div { min-width: 0; }
.facts { display: grid; grid-template-columns: auto 1fr; gap: 2px 16px; margin: 4px 0; }
.facts dt { color: var(--dim); }
.facts dd { margin: 0; overflow-wrap: anywhere; }
.words dt { font-weight: 600; }
.words dd { margin: 0 0 7px; color: var(--dim); }
footer { margin-top: 40px; color: var(--dim); font-size: .82rem; }
@media (max-width: 1080px) {
  .cards { grid-template-columns: repeat(3, 1fr); }
}
@media (max-width: 560px) {
  body { font-size: 14px; }
  .cards { grid-template-columns: 1fr 1fr; }
  .facts { grid-template-columns: 1fr; gap: 0; }
  .facts dd { margin-bottom: 6px; }
  .inside { padding: 0 12px 12px; }
  th, td { padding: 4px 7px; }
}
@media print {
  :root { --ground: #fff; --rule: #bbb; }
  body { font-size: 10pt; }
  main { max-width: none; padding: 0; }
  details::details-content { content-visibility: visible; display: block; }
  .card, figure, tr { break-inside: avoid; }
  .sheet { overflow: visible; }
  .bar-of, .bar-of i { print-color-adjust: exact; }
}
"""
