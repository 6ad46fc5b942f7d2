"""Lance's own indices on the columns of a gallery, vector and scalar ones: never lost silently.

An index goes with the column that it is on, and with a gallery that is replaced. It is not built
anew: Lance does not tell all that it was built with (of the number of partitions, the one that
came out; of a scalar index, nothing). So what would drop one is refused unless it is told to, and
says what is known of it.

Rows that change or come are not in an index; Lance looks at them one by one until
`dataset.optimize.optimize_indices()` adds them.
"""

from collections.abc import Collection
from dataclasses import dataclass

import lance
from absl import logging

from fct_tf.common.errors import InputError

# Of what an index says of itself, how it was computed, not what it is.
_HINTS = "runtime_hints"


@dataclass(frozen=True)
class Index:
    """name, kind: as Lance has them, kind e.g. `IVF_PQ`. fields: names of what it is on.

    settings: what Lance tells of how it was built. num_uncovered: rows that are not in it.
    """

    name: str
    kind: str
    fields: tuple[str, ...]
    settings: dict[str, object]
    num_uncovered: int

    def __str__(self) -> str:
        details = "".join(f", {key} {value}" for key, value in self.settings.items())
        return f"{self.name!r} on {', '.join(self.fields)} ({self.kind}{details})"


def indices_of(dataset: lance.LanceDataset) -> list[Index]:
    """The indices of a dataset at its version, by name, each once."""
    by_name = {}
    for described in dataset.describe_indices():
        stats = dataset.stats.index_stats(described.name)
        settings = _flat(described.details or {})
        partitions = [part.get("num_partitions") for part in stats.get("indices", [])]
        if partitions and partitions[0]:
            settings["num_partitions"] = partitions[0]
        by_name[described.name] = Index(
            described.name,
            described.index_type,
            tuple(described.field_names),
            settings,
            int(stats.get("num_unindexed_rows", 0)),
        )
    return [by_name[name] for name in sorted(by_name)]


def on(dataset: lance.LanceDataset, columns: Collection[str] | None) -> list[Index]:
    """The indices on any of these columns, or on a field in one; all of them for None."""
    # Statistics of the others, which may be large, are left alone.
    names = [one["name"] for one in dataset.list_indices() if _touches(one["fields"], columns)]
    return [one for one in indices_of(dataset) if one.name in names] if names else []


def _touches(fields: Collection[str], columns: Collection[str] | None) -> bool:
    return columns is None or any(name.split(".")[0] in columns for name in fields)


def check_dropped(
    dataset: lance.LanceDataset, columns: Collection[str] | None, *, drop_indices: bool
) -> list[Index]:
    """The indices that go with these columns (None: with all); refused unless `drop_indices`.

    Raises:
      InputError: names each index and its settings.
    """
    lost = on(dataset, columns)
    if lost and not drop_indices:
        raise InputError(
            f"{dataset.uri}: would lose {_plural(lost)} {'; '.join(map(str, lost))}; pass "
            "``drop_indices=True``, and build anew what you need"
        )
    return lost


def tell_dropped(path: str, lost: Collection[Index]) -> None:
    """Notes in the log what an index was that has gone."""
    for one in lost:
        logging.info("%s: index %s is dropped", path, one)


def tell_uncovered(dataset: lance.LanceDataset) -> None:
    """Notes in the log which indices do not have all rows."""
    for one in on(dataset, None):
        if one.num_uncovered:
            logging.info(
                "%s: %d rows are not in index %r yet and are searched one by one; "
                "lance.dataset(...).optimize.optimize_indices() adds them",
                dataset.uri, one.num_uncovered, one.name,
            )  # fmt: skip


def _plural(lost: Collection[Index]) -> str:
    return "the index" if len(lost) == 1 else "the indices"


def _flat(details: dict) -> dict[str, object]:
    """The settings in the details of an index, those of its parts among them."""
    flat: dict[str, object] = {}
    for key, value in details.items():
        if isinstance(value, dict) and key != _HINTS:
            flat |= {("compression" if k == "type" else k): v for k, v in _flat(value).items()}
        elif not isinstance(value, dict | list):
            flat[key] = value
    return flat
