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
h1 { font-size: clamp(1.5rem, 4vw, 2rem); line-height: 1.2; margin: 0 0 .3rem;
  overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; line-height: 1.3; margin: 2.4rem 0 .7rem; }
h3 { font-size: .95rem; margin: 0 0 .4rem; overflow-wrap: anywhere; }
p { margin: .4rem 0; }
.soft, figcaption, .note { color: var(--soft); font-size: .875rem; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 16px 18px; }
.verdict { margin-top: 1.2rem; border-left: 5px solid var(--tone); }
.verdict strong { color: var(--tone); font-size: 1.12rem; }
.verdict p { margin-bottom: 0; overflow-wrap: anywhere; }
.better { --tone: var(--good); }
.worse { --tone: var(--bad); }
.mixed, .unclear { --tone: var(--warn); }
.unjudged, .unknown { --tone: var(--soft); }
.tiles { display: grid; gap: 12px; margin-top: 12px;
  grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); }
.tile { font-variant-numeric: tabular-nums; }
.tile .name { color: var(--soft); font-size: .875rem; }
.tile .value { font-size: 1.7rem; font-weight: 600; line-height: 1.25; }
.tile .value small { font-size: .95rem; font-weight: 400; color: var(--soft); }
.tile .gain { font-weight: 600; color: var(--tone); }
.track { height: 7px; border-radius: 4px; background: var(--line); margin: 10px 0 5px;
  overflow: hidden; }
.track i { display: block; height: 100%; background: var(--tone); border-radius: 4px; }
.ends { display: flex; justify-content: space-between; gap: 8px; }
.others { margin: 4px 0 0; padding: 0; list-style: none; font-size: .925rem; }
.others li { margin: .35rem 0; overflow-wrap: anywhere; }
.others b { color: var(--tone); }
.scroll { overflow-x: auto;
  background: linear-gradient(90deg, var(--card) 30%, transparent) 0 0 / 36px 100% no-repeat local,
    linear-gradient(-90deg, var(--card) 30%, transparent) 100% 0 / 36px 100% no-repeat local,
    linear-gradient(90deg, var(--line), transparent) 0 0 / 12px 100% no-repeat,
    linear-gradient(-90deg, var(--line), transparent) 100% 0 / 12px 100% no-repeat var(--card);
  border: 1px solid var(--line);
  border-radius: 10px; -webkit-overflow-scrolling: touch; }
table { border-collapse: collapse; width: 100%; font-size: .925rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: 9px 12px; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
tbody tr:last-child > * { border-bottom: 0; }
thead th { font-weight: 600; color: var(--soft); font-size: .82rem; vertical-align: bottom; }
th:first-child, td.text { text-align: left; }
tbody th { font-weight: 500; }
td small { display: block; color: var(--soft); font-size: .78rem; line-height: 1.3; }
td .up { color: var(--good); }
td .down { color: var(--bad); }
td.shade { background: color-mix(in srgb, var(--accent) calc(var(--shade) * 34%), transparent); }
h3.chain { margin: 1.2rem 0 .5rem; }
.swatch { display: inline-block; width: .7em; height: .7em; border-radius: 50%;
  margin-right: .55em; background: var(--light); }
@media (prefers-color-scheme: dark) { .swatch { background: var(--dark); } }
.figures { display: grid; gap: 14px; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); }
.figures.after { margin-top: 14px; }
.figures.small { grid-template-columns: repeat(auto-fill, minmax(min(100%, 380px), 1fr)); }
figure { margin: 0; min-width: 0; }
figure img { display: block; width: 100%; max-width: 560px; height: auto; margin: 0 auto; }
figcaption { margin-top: .5rem; }
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
.frame .mark { position: absolute; right: -7px; top: -7px; width: 20px; height: 20px;
  border-radius: 50%; color: var(--card); font-size: 13px; font-weight: 700; line-height: 20px;
  text-align: center; background: var(--bad); }
.frame.right .mark { background: var(--good); }
.tilepic figcaption { font-size: .72rem; line-height: 1.25; margin-top: .3rem; max-height: 2.5em;
  overflow: hidden; overflow-wrap: anywhere; text-align: center; }
.query .tilepic { width: 88px; }
details { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 10px 18px; margin-top: 12px; }
summary { cursor: pointer; font-weight: 500; }
pre { background: var(--code); border-radius: 8px; padding: 12px 14px; overflow-x: auto;
  font: .82rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; margin: .6rem 0; }
.command { white-space: pre-wrap; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 18px; margin: .6rem 0;
  font-size: .9rem; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 560px) {
  main { padding: 18px 12px 32px; }
  .card { padding: 13px 13px; }
  th, td { padding: 8px 10px; }
  .example { grid-template-columns: 1fr; }
  .tilepic { width: 58px; }
}
@media print {
  :root { --page: #fff; --code: #fff; }
  .card, details, .scroll { break-inside: avoid; }
}
"""
