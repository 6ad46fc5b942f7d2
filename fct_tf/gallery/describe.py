"""What is in a gallery: columns, spaces, versions, tags, rows that lack a value."""

from html import escape

import numpy as np
import pyarrow as pa

from fct_tf.common import formats
from fct_tf.gallery import indices, reader, table
from fct_tf.gallery.columns import completing

# Digits of a fingerprint and versions that the table for people shows.
SHOWN = 12


VERSIONS_SHOWN = 10


def describe(gallery: table.Gallery) -> dict:
    """A JSON-able record of a gallery at one version: columns, spaces, versions, tags, sizes."""
    dataset = gallery.dataset
    named = tags(gallery)
    fragments = [fragment.metadata.to_json() for fragment in dataset.get_fragments()]
    return {
        "path": gallery.path,
        "version": gallery.version,
        "num_rows": gallery.num_rows,
        "num_labelled": _count(gallery, "label IS NOT NULL") if _has(gallery, "label") else 0,
        "num_fragments": len(fragments),
        "size_bytes": sum(
            file.get("file_size_bytes") or 0 for fragment in fragments for file in fragment["files"]
        ),
        "columns": [_column(gallery, column) for column in gallery.columns.values()],
        "other_fields": [
            {"name": field.name, "type": str(field.type)}
            for field in dataset.schema
            if field.name not in gallery.columns
        ],
        "indices": [
            {
                "name": index.name,
                "fields": list(index.fields),
                "type": index.kind,
                "settings": index.settings,
                "num_uncovered": index.num_uncovered,
            }
            for index in indices.indices_of(dataset)
        ],
        "tags": named,
        "versions": [
            {
                "version": version["version"],
                "time": f"{version['timestamp']:%Y-%m-%dT%H:%M:%S}",
                "tags": [name for name, number in named.items() if number == version["version"]],
            }
            for version in dataset.versions()
        ],
    }


def tags(gallery: table.Gallery) -> dict[str, int]:
    """Tag -> version, by name."""
    listed = gallery.dataset.tags.list()
    return {name: int(entry["version"]) for name, entry in sorted(listed.items())}


def compare(gallery: table.Gallery, sources: table.Gallery) -> dict:
    """How many rows of a gallery are gone from what it was made from, and how many are new there.

    The ids of both are held in memory.
    """
    place = reader.places_in(gallery, reader.all_ids(sources))
    shared = len(np.unique(place[place >= 0]))
    return {
        "path": sources.path,
        "version": sources.version,
        "num_gone": int((place < 0).sum()),
        "num_new": sources.num_rows - shared,
    }


def _column(gallery: table.Gallery, column: table.Column) -> dict:
    record = {
        "name": column.name,
        "dim": column.dim,
        "dtype": column.dtype,
        "kind": column.kind,
        "distance": column.distance,
        "model": column.model,
        "space": column.space,
        "compatible_with": list(column.compatible_with),
        "created_by": column.created_by,
    }
    if _has(gallery, f"{column.name}_origin"):
        count = _count(gallery, f"`{column.name}_origin` = 'backfilled'")
        record["num_backfilled"] = count
        record["num_missing"] = _count(gallery, f"`{column.name}_origin` IS NULL")
        if record["num_missing"]:
            record["advice"] = completing(column, gallery.path)
    return record


def _has(gallery: table.Gallery, name: str) -> bool:
    return name in gallery.dataset.schema.names


def _count(gallery: table.Gallery, condition: str) -> int:
    try:
        return gallery.dataset.count_rows(condition)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise reader.read_error(gallery, error) from None


def text(record: dict) -> str:
    """The record of `describe` as a table for people; long fingerprints are cut to 12 digits."""
    header, *rows = _table(record)
    lines = [_head(record), "", formats.console(header, rows, left=len(header), rule=False)]
    for column in record["columns"]:
        if column.get("num_missing"):
            lines += [
                "",
                f"{column['name']} lacks {column['num_missing']} rows; {column['advice']}",
            ]
    others = ", ".join(f"{field['name']} ({field['type']})" for field in record["other_fields"])
    lines += ["", f"other fields: {others}"]
    if record["indices"]:
        lines += ["", "indices:"]
    for index in record["indices"]:
        built = "".join(f", {key} {value}" for key, value in index["settings"].items())
        on, left = ", ".join(index["fields"]), index["num_uncovered"]
        lines.append(f"  {index['name']} on {on}: {index['type']}{built}; {left} rows not in it")
    if "sources" in record:
        lines += ["", _compared(record["path"], record["sources"])]
    lines += ["", "versions:"]
    hidden = len(record["versions"]) - VERSIONS_SHOWN
    if hidden > 0:
        lines.append(f"  ... {hidden} older")
    for version in record["versions"][-VERSIONS_SHOWN:]:
        tags = "".join(f"  <- {name}" for name in version["tags"])
        lines.append(f"  {version['version']}  {version['time']}{tags}")
    if "problems" in record:
        lines += ["", "verified: " + ("problems" if record["problems"] else "no problems")]
        lines += [f"  {line}" for line in record["problems"] + record["notes"]]
    return "\n".join(lines)


def html(record: dict) -> str:
    """The record of `describe` as a table for a notebook; fingerprints are cut to 12 digits."""
    rows = [
        "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in row)
        for tag, row in zip(("th", *("td" for _ in record["columns"])), _table(record), strict=True)
    ]
    named = ", ".join(f"{name}: {version}" for name, version in record["tags"].items())
    caption = _head(record) + (f"; tags {named}" if named else "")
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f"<p>{escape(caption)}</p><table>{body}</table>"


def _head(record: dict) -> str:
    size = record["size_bytes"] / 1e6
    return (
        f"{record['path']}, version {record['version']}: {record['num_rows']} rows, "
        f"{record['num_labelled']} labelled, {record['num_fragments']} fragments, {size:.1f} MB"
    )


def _table(record: dict) -> list[tuple[str, ...]]:
    """A header and one row for each column."""
    head = ("column", "dim", "dtype", "kind", "distance", "model", "space", "fits", "backfilled")
    rows: list[tuple[str, ...]] = [head]
    for column in record["columns"]:
        backfilled = column.get("num_backfilled")
        rows.append(
            (
                column["name"],
                str(column["dim"]),
                column["dtype"],
                column["kind"],
                column["distance"],
                column["model"],
                column["space"][:SHOWN],
                ",".join(space[:SHOWN] for space in column["compatible_with"]) or "-",
                "-" if backfilled is None else str(backfilled),
            )
        )
    return rows


def _compared(path: str, sources: dict) -> str:
    gone, new = sources["num_gone"], sources["num_new"]
    message = f"sources {sources['path']}: {gone} rows here are not there any more"
    if gone:
        message += " (remove_rows --sources removes them)"
    return f"{message}, {new} rows there are not here"
