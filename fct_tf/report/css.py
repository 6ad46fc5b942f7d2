"""The style sheet of the page: light and dark, from a phone's width up."""

STYLE = """
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --ink: #1f2429; --soft: #5b6570; --line: #dde2e8;
  --accent: #0067a8; --good: #116b43; --bad: #b3261e; --warn: #8a5a00; --code: #f1f3f6;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #0e1115; --card: #171c22; --ink: #e4e8ed; --soft: #9aa5b1; --line: #2c343d;
    --accent: #58a6ff; --good: #4cc38a; --bad: #ff8a80; --warn: #e3b341; --code: #1f262e;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
}
main { max-width: 1000px; margin: 0 auto; padding: 28px 20px 48px; }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; border-radius: 4px; }
.skip { position: absolute; left: 12px; top: -60px; background: var(--card); color: var(--accent);
  padding: 8px 14px; border-radius: 8px; }
.skip:focus { top: 12px; }
.unseen { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%);
  white-space: nowrap; }
h1 { font-size: clamp(1.5rem, 4vw, 2rem); line-height: 1.2; margin: 0 0 .3rem;
  overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; line-height: 1.3; margin: 2.2rem 0 .7rem; overflow-wrap: anywhere; }
h3 { font-size: .95rem; margin: 0 0 .4rem; overflow-wrap: anywhere; }
p { margin: .4rem 0; overflow-wrap: anywhere; }
.soft, figcaption, .note { color: var(--soft); font-size: .875rem; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 16px 18px; }
.better { --tone: var(--good); }
.worse { --tone: var(--bad); }
.mixed, .unclear { --tone: var(--warn); }
.unjudged, .unknown { --tone: var(--soft); }
.up { color: var(--good); }
.down { color: var(--bad); }

.verdict { margin-top: 1.2rem; border-left: 6px solid var(--tone); display: grid;
  grid-template-columns: auto minmax(0, 1fr); gap: 6px 28px; align-items: center; }
.verdict > :only-child { grid-column: 1 / -1; }
.verdict p { margin: 0; }
.verdict .big { color: var(--tone); font-size: 3.1rem; font-weight: 650; line-height: 1;
  letter-spacing: -.02em; font-variant-numeric: tabular-nums; }
.verdict .big small { display: block; color: var(--soft); font-size: .875rem; font-weight: 400;
  line-height: 1.35; letter-spacing: 0; margin-top: .35rem; }
.verdict .badge { color: var(--tone); font-weight: 700; font-size: 1.05rem; }
.verdict .answer { font-size: 1.2rem; line-height: 1.4; }
.facts { margin: .5rem 0 0; padding: 0; list-style: none; display: flex; flex-wrap: wrap;
  color: var(--soft); font-size: .875rem; }
.facts li:not(:last-child)::after { content: "·"; margin: 0 .5em; }
.listed { margin: 4px 0; padding-left: 1.1rem; font-size: .925rem; }
.listed li { margin: .35rem 0; overflow-wrap: anywhere; }

.gains { padding: 12px 18px 14px; --names: minmax(0, 17rem); --values: 8.6rem; }
.gains ol { margin: 0; padding: 0; list-style: none; }
.gains li, .gains .scale { display: grid; gap: 0 14px; align-items: center;
  grid-template-columns: var(--names) minmax(0, 1fr) var(--values); }
.gains .name { overflow-wrap: anywhere; line-height: 1.3; padding: 4px 0; }
.gains .told { text-align: right; line-height: 1.2; font-variant-numeric: tabular-nums;
  position: relative; }
.gains .told b { color: var(--tone); }
.gains .told small { display: block; color: var(--soft); font-size: .78rem; }
.gains .plot { position: relative; align-self: stretch; min-height: 2.5rem; margin: 0 6px; }
.gains .plot::before, .topped .plot::after { content: ""; position: absolute; inset: 0 auto 0 0;
  left: var(--zero); border-left: 2px solid var(--soft); margin-left: -1px; }
.topped .plot::after { left: var(--top); border-left: 2px dashed var(--good); }
.plot .bar, .plot .mark, .plot .off { position: absolute; top: 50%; z-index: 1;
  forced-color-adjust: none; }
.plot .bar { left: var(--low); width: calc(var(--high) - var(--low)); min-width: 1px; height: 10px;
  margin-top: -5px; border: solid var(--tone); border-width: 0 2px;
  background: linear-gradient(var(--tone), var(--tone)) 0 50% / 100% 2px no-repeat; }
.mark { display: block; width: 13px; height: 13px; border-radius: 50%; background: var(--tone);
  border: 2px solid var(--tone); }
.plot .mark { left: var(--at); margin: -6.5px 0 0 -6.5px; }
.unclear > .mark, .unclear > .plot .mark { background: var(--card); }
.worse > .mark, .worse > .plot .mark { border-radius: 1px; transform: rotate(45deg) scale(.85); }
.plot .off { left: -8px; color: var(--tone); font-style: normal; font-size: 1.5rem;
  line-height: 1; margin-top: -.55em; }
.gains .scale > div { grid-column: 2; position: relative; margin: 0 6px; height: 1.5rem;
  color: var(--soft); font-size: .8rem; line-height: 1.3rem; white-space: nowrap; }
.gains .scale span { position: absolute; left: var(--at);
  transform: translateX(-50%); }
.gains .scale:not(.ticks) span { bottom: 0; transform: translateX(calc(-1 * var(--at))); }
.gains .scale > .tight { height: 2.7rem; }
.gains .tight span:first-child { bottom: 1.3rem; }
.gains .ticks > div { height: 1.5rem; border-top: 1px solid var(--line); }
.gains .ticks span { top: .1rem; }
.key { display: inline-flex; align-items: center; gap: 6px; margin-right: 16px; }
.key .mark { flex: none; }

.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; position: relative; }
table { border-collapse: collapse; width: 100%; font-size: .925rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: 8px 12px; text-align: right; border-bottom: 1px solid var(--line); }
td, td small { white-space: nowrap; }
td.long, td.text { white-space: normal; }
tbody tr:last-child > * { border-bottom: 0; }
thead th { font-weight: 600; color: var(--soft); font-size: .82rem; vertical-align: bottom; }
th:first-child, th.text, td.text { text-align: left; }
tbody th { font-weight: 500; overflow-wrap: anywhere; min-width: 8rem; }
td small, th small { display: block; color: var(--soft); font-size: .78rem; line-height: 1.3;
  font-weight: 400; }
tr:has(th.end) { background: var(--code); }
tr:has(th.end) > * { font-weight: 600; }
td.shade { background: color-mix(in srgb, var(--accent) calc(var(--shade) * 22%), transparent); }
h3.chain { margin: 1.2rem 0 .5rem; }
.scroll, .figures, .examples { margin-top: 12px; }
.figures > .scroll { margin-top: 0; }

.figures { display: grid; gap: 14px; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); }
.figures.small { grid-template-columns: repeat(auto-fill, minmax(min(100%, 285px), 1fr)); }
.figures > * { min-width: 0; }
figure { margin: 0; min-width: 0; }
figure img { display: block; width: 100%; max-width: 460px; height: auto; margin: 0 auto; }
figcaption { margin-top: .5rem; }
.figures.small img { max-width: 320px; }

.examples { display: grid; gap: 12px; }
.example { display: grid; grid-template-columns: 104px minmax(0, 1fr); gap: 6px 18px; }
.row { display: flex; flex-wrap: wrap; gap: 10px; }
.ranks { display: grid; gap: 12px 20px; min-width: 0;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 370px), 1fr)); }
.tilepic { width: 66px; margin: 0; }
.frame { display: block; position: relative; border: 3px solid var(--line); border-radius: 7px;
  background: #fff; }
.frame img { display: block; width: 100%; height: auto; aspect-ratio: 1; object-fit: contain;
  border-radius: 3px; }
.frame.pixels img { image-rendering: pixelated; }
.frame.right { border-color: var(--good); }
.frame.wrong { border-color: var(--bad); border-style: dashed; }
.frame .mark { position: absolute; right: -7px; top: -7px; width: 20px; height: 20px; border: 0;
  color: var(--card); font-size: 13px; font-weight: 700; line-height: 20px; text-align: center;
  background: var(--bad); }
.frame.right .mark { background: var(--good); }
.tilepic .label { color: var(--soft); font-size: .72rem; line-height: 1.25;
  margin-top: .3rem; max-height: 2.5em;
  overflow: hidden; overflow-wrap: anywhere; text-align: center;
  display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 2; }
.query .tilepic { width: 88px; }

details { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 10px 18px; margin-top: 12px; }
details .scroll, details .figures { margin-top: 10px; }
summary { cursor: pointer; font-weight: 500; }
pre { background: var(--code); border-radius: 8px; padding: 12px 14px; margin: .6rem 0;
  font: .82rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
  white-space: pre-wrap; overflow-wrap: anywhere; }
details pre { max-height: 30rem; overflow-y: auto; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 18px; margin: .6rem 0;
  font-size: .9rem; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }

@media (max-width: 640px) {
  main { padding: 18px 12px 32px; }
  .card, details { padding: 12px; }
  .verdict { grid-template-columns: 1fr; }
  .verdict .big { font-size: 2.5rem; display: flex; gap: 10px; align-items: end; }
  .verdict .answer { font-size: 1.1rem; }
  .facts { display: block; }
  .facts li:not(:last-child)::after { content: none; }
  .gains { --values: auto; }
  .gains li { grid-template-columns: minmax(0, 1fr) auto; padding-top: 4px; }
  .gains .scale { grid-template-columns: 1fr; }
  .gains .scale > div { grid-column: 1; }
  .gains .plot { grid-row: 2; grid-column: 1 / -1; min-height: 1.5rem; }
  .gains .plot, .gains .scale > div { margin: 0 22px; }
  .example { grid-template-columns: 1fr; }
  .tilepic { width: 56px; }
  thead { display: none; }
  tbody tr { display: grid; grid-template-columns: repeat(auto-fill, minmax(90px, 1fr));
    column-gap: 10px; padding: 8px 12px; border-bottom: 1px solid var(--line); }
  tbody tr:last-child { border-bottom: 0; }
  tbody tr > * { padding: 3px 0; border: 0; text-align: left; }
  tbody th { grid-column: 1 / -1; }
  tbody td { white-space: normal; overflow-wrap: anywhere; }
  tbody td:empty { display: none; }
  tbody td::before { content: attr(data-label); display: block; color: var(--soft);
    font-size: .75rem; font-weight: 400; }
}
@media print {
  :root { --page: #fff; --code: #fff; }
  .card, details, .scroll { break-inside: avoid; }
}
"""
