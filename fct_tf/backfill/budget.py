"""What a backfilling may cost: rows, a share of the gallery, or minutes of embedding."""

import re
from dataclasses import dataclass

from fct_tf.common.errors import InputError


@dataclass(frozen=True)
class Budget:
    """text: as given. rows: how many at most; seconds: how long at most; one of them."""

    text: str
    rows: int | None = None
    seconds: float | None = None


def parse(text: str, num_rows: int) -> Budget:
    """`1000` rows; `5%` of all rows, at least one; `30min` of embedding.

    Args:
      text: the budget.
      num_rows: of the whole gallery, whether they are backfilled or not.

    Raises:
      InputError: anything else, nothing at all, or more than all rows.
    """
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*(%|min|)", text.strip())
    value = float(match[1]) if match else 0.0
    unit = match[2] if match else ""
    whole = unit or value == int(value)
    if not value or not whole or (unit == "%" and value > 100):
        raise InputError(
            f"``budget={text}``: give a number of rows (1000), a share of all rows (5%) or minutes "
            "of embedding (30min), above 0"
        )
    if unit == "min":
        return Budget(text, seconds=60 * value)
    return Budget(text, rows=max(1, round(value / 100 * num_rows)) if unit else int(value))
