"""The answer at the top of the page: one sentence on the best upgrade, and what it rests on."""

from collections.abc import Mapping, Sequence

from fct_tf.common import formats
from fct_tf.report import methods
from fct_tf.report.tables import escape, minus
from fct_tf.report.verdict import WORDS, Comparison, Verdict

_SYMBOLS = {"better": "▲", "worse": "▼", "mixed": "◆", "unclear": "●"}


def section(found: Sequence[Verdict], compared: Mapping[str, methods.Row]) -> str:
    """The card as HTML.

    Args:
      found: verdicts on whole galleries, the best first.
      compared: rows of `methods.rows` by case; those that it lacks have no costs told.
    """
    best = found[0]
    badge = f"{_SYMBOLS.get(best.status, '○')} {WORDS[best.status].capitalize()}"
    head = f'<p class="badge">{badge}</p>'
    card = f'<section class="card verdict {best.status}" aria-label="Verdict">'
    if not best.comparisons:
        return f"{card}{head}<p>{escape(best.sentence)}</p></section>"
    first = best.lead
    method = compared.get(best.case, {})
    items = "".join(f"<li>{minus(escape(fact))}</li>" for fact in _facts(found, method))
    return (
        f'{card}<p class="big" aria-hidden="true">{minus(formats.signed(first.gain))}'
        f"<small>points {escape(first.metric)}<br>over {escape(best.base)}</small></p>"
        f'<div>{head}<p class="answer">{minus(_sentence(found, method))}</p>'
        f'<ul class="facts">{items}</ul></div></section>'
    )


def _sentence(found: Sequence[Verdict], method: methods.Row) -> str:
    """Which case is best, by how much, and at what cost, as HTML."""
    best, first = found[0], found[0].lead
    case = f"<b>{escape(best.case)}</b>"
    change = "as much as"
    if formats.signed(first.gain) != "0.00":
        change = f"<b>{formats.percent(abs(first.gain))} points</b> "
        change += "more than" if first.gain > 0 else "less than"
    sentence = f"{_finds(first)}, {change} {escape(best.base)}"
    judged = best.status != "unjudged"
    if len(found) > 1 and judged and not any(one.status == "better" for one in found):
        sentence = f"None of {len(found)} upgrades is clearly better: the best, {case}, {sentence}"
    else:
        sentence = f"{case} {sentence}"
    costs = _costs(method, first.metric, best.pairs)
    return f"{sentence}{f'; {costs}' if costs else ''}."


def _finds(first: Comparison) -> str:
    value = formats.percent(first.value)
    rank = first.metric.removeprefix("top-")
    if rank == first.metric:
        return f"reaches {value} % {escape(first.metric)}"
    where = "first" if rank == "1" else f"among the first {escape(rank)}"
    return f"finds a right row {where} for {value} % of queries"


def _costs(method: methods.Row, metric: str, pairs: float | None) -> str:
    """What a person who decides has to know: rows read again, queries, the new model."""
    cost = method.get("cost") or {}
    costs = []
    share = cost.get("reembedded_share", pairs)
    if share is not None:
        costs.append(
            f"{100 * share:.3g} % of rows are re-embedded" if share else "no row is re-embedded"
        )
    if cost.get("query_encoders") == 2:
        costs.append("both models embed each query")
    lost = (method.get("lost") or {}).get(metric)
    if lost and formats.signed(lost["mean"]) != "0.00":
        sign = "loses" if lost["mean"] > 0 else "gains"
        costs.append(f"the new model {sign} {formats.percent(abs(lost['mean']))} points by it")
    return " and ".join([", ".join(costs[:-1]), costs[-1]] if len(costs) > 1 else costs)


def _facts(found: Sequence[Verdict], method: methods.Row) -> list[str]:
    """What the sentence rests on, in words for a list."""
    best, first = found[0], found[0].lead
    items = []
    if len(found) > 1:
        items.append(f"best of {len(found)} by {best.comparisons[0].metric}")
    if first.gain_interval:
        low, high = map(formats.signed, first.gain_interval)
        items.append(f"95 % interval {low} to {high} points")
    elif first.gain_std is not None:
        items.append(
            f"± {formats.percent(first.gain_std)} points over {first.seeds} seeds, clear in "
            f"{first.seeds_clear} of them"
        )
    elif first.interval is None:
        items.append("measured without intervals")
    for other in best.comparisons:
        if other.gain * first.gain < 0 or first.clear > other.clear:
            unclear = "" if other.clear else ", not clear"
            items.append(f"{other.metric} {formats.signed(other.gain)} points{unclear}")
    if first.gap_share is not None and first.gap_share > 0:
        items.append(f"{100 * first.gap_share:.0f} % of the way to {best.top}")
    if flips := method.get("negative_flips"):
        items.append(f"{formats.percent(flips['mean'])} % of queries lose their right row")
    work = methods.million_rows(method.get("cost") or {})
    if work not in ("n/a", "nothing"):
        items.append(f"{work} for a million rows")
    return items
