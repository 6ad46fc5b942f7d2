"""The server's page for a person: models, versions, labels, states, errors and latencies.

It needs nothing from elsewhere, and fetches itself again every few seconds; without script the
browser reloads it. Every text that comes from outside is escaped.
"""

import time
from collections.abc import Mapping
from html import escape
from typing import Any

from fct_tf.report.css import STYLE

HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}

_TONES = {
    "AVAILABLE": "good",
    "START": "warn",
    "LOADING": "warn",
    "UNLOADING": "warn",
    "END": "soft",
}

_MORE_STYLE = """
.top { display: flex; flex-wrap: wrap; align-items: baseline; justify-content: space-between;
  gap: 4px 16px; }
.model { margin-top: 16px; padding: 0; overflow: hidden; }
.model header { padding: 14px 18px 12px; }
.model h2 { margin: 0; overflow-wrap: anywhere; }
.model .path { overflow-wrap: anywhere; }
.model .scroll { border-width: 1px 0 0; border-radius: 0; }
.model th, .model td { text-align: left; }
.model th:first-child, .model td:first-child { width: 6.5rem; padding-left: 18px; }
.model th:nth-child(2) { width: 11rem; }
.model tr.failed td { border-bottom: 0; padding-bottom: 0; }
.model td.error { white-space: normal; overflow-wrap: anywhere; color: var(--bad); }
.model header .bad { font-size: .925rem; }
.numbers { display: flex; flex-wrap: wrap; gap: 6px 28px; margin: 10px 0 0; }
.numbers div { min-width: 4.5rem; }
.numbers dt { color: var(--soft); font-size: .8rem; }
.numbers dd { margin: 0; font-weight: 600; font-variant-numeric: tabular-nums; }
.state { font-weight: 600; white-space: nowrap; }
.state::before { content: ""; display: inline-block; width: .55em; height: .55em;
  margin-right: .5em; border-radius: 50%; background: currentColor; }
.good { color: var(--good); } .warn { color: var(--warn); } .bad { color: var(--bad); }
.label { display: inline-block; padding: 0 .6em; margin-right: .3em; border-radius: 99px;
  border: 1px solid var(--accent); color: var(--accent); font-size: .82rem; }
.stale main { opacity: .55; }
#lost { display: none; } .stale #lost { display: inline; color: var(--bad); }
"""

# The page is fetched again and only what is in <main> is exchanged, so it does not flicker.
_SCRIPT = """
setInterval(async () => {
  if (document.hidden) return;
  try {
    const answer = await fetch("/", {cache: "no-store"});
    if (!answer.ok) throw new Error(answer.status);
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    document.querySelector("main").replaceWith(page.querySelector("main"));
    document.body.classList.remove("stale");
  } catch (error) { document.body.classList.add("stale"); }
}, 3000);
"""


def html(core: Any) -> str:
    """The page.

    Args:
      core: a `ServerCore`.
    """
    models = core.models()
    cards = "".join(_card(name, model, core.metrics) for name, model in models.items())
    empty = '<p class="card model" style="padding:16px 18px">No model is configured.</p>'
    now = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<noscript><meta http-equiv="refresh" content="5"></noscript>
<title>{escape(_title(models))}</title>
<style>{STYLE}{_MORE_STYLE}</style></head>
<body><main>
<div class="top"><h1>Model server</h1>
<span class="soft">{now} <span id="lost">no answer from the server</span></span></div>
<p class="soft">{escape(_summary(models))}</p>
{cards or empty}
</main><script>{_SCRIPT}</script></body></html>
"""


def _title(models: Mapping[str, Any]) -> str:
    return f"Model server: {', '.join(models) or 'no model'}"


def _summary(models: Mapping[str, Any]) -> str:
    versions = [version for model in models.values() for version in model["versions"]]
    available = sum(version["state"] == "AVAILABLE" for version in versions)
    failed = sum(bool(version["error"]) for version in versions)
    text = f"{_count(len(models), 'model')}, {_count(available, 'version')} available"
    return f"{text}, {failed} with an error" if failed else text


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _card(name: str, model: Mapping[str, Any], metrics: Any) -> str:
    numbers = {version["version"] for version in model["versions"]}
    dangling = {label: v for label, v in sorted(model["labels"].items()) if v not in numbers}
    notes = "".join(
        f'<p class="bad">Label {escape(label)}: version {version} is not known.</p>'
        for label, version in dangling.items()
    )
    rows = "".join(_row(version) for version in model["versions"])
    if not rows:
        rows = '<tr><td colspan="3" class="soft">No version has been found.</td></tr>'
    return f"""<section class="card model"><header><h2>{escape(name)}</h2>
<div class="soft path">{escape(model["base_path"])}</div>{_numbers(name, metrics)}{notes}</header>
<div class="scroll"><table><thead><tr><th>Version</th><th>State</th><th>Labels</th>
</tr></thead><tbody>{rows}</tbody></table></div></section>
"""


def _row(version: Mapping[str, Any]) -> str:
    state, error = version["state"], version["error"]
    tone = "bad" if state == "END" and error else _TONES.get(state, "soft")
    labels = "".join(f'<span class="label">{escape(label)}</span>' for label in version["labels"])
    row = (
        f"<tr{' class=failed' if error else ''}><td>{version['version']}</td>"
        f'<td><span class="state {tone}">{escape(state)}</span></td><td>{labels}</td></tr>'
    )
    message = f'<tr><td colspan="3" class="error">{escape(error)}</td></tr>' if error else ""
    return row + message


def _numbers(name: str, metrics: Any) -> str:
    answers = metrics.answers(name)
    if not answers:
        return '<p class="soft">No request yet.</p>'
    errors = sum(answers.values()) - answers.get("OK", 0)
    shown = [("Answers", f"{sum(answers.values()):,}"), ("Errors", f"{errors:,}")]
    recent = metrics.recent(name)
    if recent:
        shown += [
            ("Per second", f"{recent.per_second:.1f}"),
            ("p50", _ms(recent.p50_ms)),
            ("p95", _ms(recent.p95_ms)),
            ("p99", _ms(recent.p99_ms)),
        ]
    items = "".join(f"<div><dt>{label}</dt><dd>{value}</dd></div>" for label, value in shown)
    window = f" of the last {_count(recent.answers, 'answer')}" if recent else ""
    title = f"Since the start; rate and latencies{window}, of at most five minutes."
    return f'<dl class="numbers" title="{title}">{items}</dl>'


def _ms(value: float) -> str:
    return f"{value:.2f} ms" if value < 10 else f"{value:,.0f} ms"
