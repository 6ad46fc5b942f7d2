"""What a study prints when it ends: every table that its results have."""

from collections.abc import Mapping, Sequence
from typing import Any

from fct_tf.report import backfilling as backfilling_tables
from fct_tf.report import chain_tables, verdict


def text(
    records: Sequence[Mapping[str, Any]],
    chains: Mapping[str, Any] | None = None,
    backfilling: Sequence[Mapping[str, Any]] | None = None,
) -> str:
    """The tables one below the other.

    Args:
      records, chains, backfilling: the content of results.json, chains.json and backfilling.json.
    """
    parts = [verdict.text(records)]
    if chains:
        parts.append(chain_tables.text(chains))
    if backfilling:
        parts.append(backfilling_tables.text(backfilling))
    return "\n\n".join(parts)
