"""Imports embeddings made elsewhere: any framework, any modality, as long as they are rows.

A gallery that is not there yet is made; to one that is there a column is added, its rows matched
by id. Files: npy, npz, HDF5, Parquet. The space is the SHA-256 of the model name, so give two
imports of one model the same name.

    python -m fct_tf.import_gallery --gallery=photos.lance --embeddings=clip.npy --ids=ids.txt \\
        --labels=labels.txt --column=embedding_old --model_name=clip-vit-b32 --distance=cosine
"""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from absl import flags, logging
from tqdm import tqdm

from fct_tf import cli
from fct_tf.errors import InputError
from fct_tf.gallery import embedding_files, table
from fct_tf.gallery.columns import DISTANCES, KINDS
from fct_tf.provenance import created_by

BLOCK_ROWS = 8192
# Names under which ids and labels are looked for beside the embeddings.
ID_NAMES = ("id", "ids")
LABEL_NAMES = ("label", "labels")


def define_flags(values: flags.FlagValues) -> None:
    for name, text in (
        ("gallery", "Gallery to make or to add the column to."),
        ("embeddings", "File: .npy, .npz, .h5, .hdf5 or .parquet."),
        ("column", "Name of the new column."),
        ("model_name", "Name of the model; its SHA-256 is the space."),
    ):
        flags.DEFINE_string(name, None, text, required=True, flag_values=values)
    for name, text in (
        ("key", "Array or column of the file that holds the embeddings; found if there is one."),
        (
            "ids",
            "Ids: .txt (one per line), .npy, or an array or column of --embeddings. Default: "
            "'id' or 'ids' of the file, else MODEL_NAME:ROW.",
        ),
        ("labels", "Labels, as --ids; empty ones are null. An existing gallery keeps its own."),
    ):
        flags.DEFINE_string(name, "", text, flag_values=values)
    flags.DEFINE_enum("distance", "l2", DISTANCES, "How to compare the rows.", values)
    flags.DEFINE_enum("kind", "imported", KINDS, "What the column is.", values)
    flags.DEFINE_list(
        "compatible_with",
        [],
        "Spaces it may also be compared with: fingerprints, or columns of the gallery.",
        flag_values=values,
    )
    cli.define_overwrite(values)


def main(values: flags.FlagValues) -> None:
    gallery = import_embeddings(
        values.gallery,
        values.embeddings,
        values.column,
        values.model_name,
        key=values.key,
        ids=values.ids,
        labels=values.labels,
        distance=values.distance,
        kind=values.kind,
        compatible_with=values.compatible_with,
        overwrite=values.overwrite,
    )
    column = gallery.columns[values.column]
    print(
        f"{gallery.path}, version {gallery.version}: column {column.name!r}, "
        f"{gallery.num_rows} rows of {column.dim} {column.dtype}, space {column.space}"
    )


def import_embeddings(
    gallery: str | Path,
    embeddings: str | Path,
    column: str,
    model_name: str,
    *,
    key: str = "",
    ids: str = "",
    labels: str = "",
    distance: str = "l2",
    kind: str = "imported",
    compatible_with: list[str] | tuple[str, ...] = (),
    overwrite: bool = False,
) -> table.Gallery:
    """Makes a gallery of the embeddings of a file, or adds them to one as a column, by id.

    The arguments are the flags of the door. A stopped call leaves nothing visible; repeated, it
    ends in the same content.

    Raises:
      InputError: file, ids or labels that cannot be read or do not fit, rows with NaN or
        infinity, repeated ids, gallery rows without embedding, existing column.
    """
    path = str(gallery)
    if not model_name:
        raise InputError("--model_name is empty; name the model that made the embeddings")
    if table.split_uri(path)[1] is not None:
        raise InputError(f"{path}: a new column makes a new version; leave the part after '@' out")
    there = table.open_gallery(path) if table.exists(path) else None
    source = embedding_files.Embeddings(embeddings, key)
    count, dim = source.shape
    row_ids = _texts(source, ids, ID_NAMES, "--ids")
    if row_ids is None:
        row_ids = np.array([f"{model_name}:{row}" for row in range(count)], dtype=object)
        logging.warning(
            "%s: no ids; its rows are numbered %s:0 and so on. Rows of another file get the same "
            "ids and are taken for the same rows: give --ids where they are not",
            embeddings,
            model_name,
        )
    _check_ids(row_ids, ids or str(embeddings))
    settings = {
        "embeddings": str(embeddings),
        "embeddings_sha256": _sha256(embeddings),
        "key": source.key,
        "ids": ids,
        "ids_sha256": hashlib.sha256("\n".join(row_ids).encode()).hexdigest(),
        "labels": labels,
    }
    new = table.Column(
        column,
        dim,
        table.imported_space(model_name),
        source.dtype,
        kind,
        distance,
        _spaces(compatible_with, there),
        created_by("import_gallery", settings, model=model_name),
    )
    row_labels = _texts(source, labels, LABEL_NAMES, "--labels")
    if there is None:
        return table.create(path, _batches(source, column, row_ids, row_labels), [new])
    return _add(there, new, source, row_ids, row_labels if labels else None, overwrite)


def _add(
    gallery: table.Gallery,
    column: table.Column,
    source: embedding_files.Embeddings,
    ids: np.ndarray,
    labels: np.ndarray | None,
    overwrite: bool,
) -> table.Gallery:
    """Adds the column to a gallery, whose rows must all be in the file."""
    position = {row_id: row for row, row_id in enumerate(ids)}
    missing = 0
    first = ""
    for batch in gallery.batches([], with_labels=labels is not None):
        for number, row_id in enumerate(batch.ids):
            row = position.get(row_id)
            if row is None:
                missing += 1
                first = first or row_id
            elif labels is not None and batch.labels is not None:
                if labels[row] != batch.labels[number]:
                    raise InputError(
                        f"{gallery.path}: row {row_id!r} has label {batch.labels[number]!r}, "
                        f"--labels says {labels[row]!r}; leave --labels out to keep the gallery's, "
                        "or import into a new gallery"
                    )
    if missing:
        more = f" and {missing - 1} more rows" if missing > 1 else ""
        raise InputError(
            f"{source.path}: no embedding for row {first!r}{more} of {gallery.path}; rows are "
            "matched by id, give --ids with the ids of the gallery"
        )
    extra = len(ids) - gallery.num_rows
    if extra:
        logging.warning("%s: %d rows are not in %s; left out", source.path, extra, gallery.path)

    def look_up(rows: table.Rows) -> np.ndarray:
        return source.take(np.array([position[row_id] for row_id in rows.ids], dtype=np.int64))

    return table.add_column(
        gallery, column, look_up, [], overwrite=overwrite, batch_size=BLOCK_ROWS, progress="import"
    )


def _batches(
    source: embedding_files.Embeddings, name: str, ids: np.ndarray, labels: np.ndarray | None
) -> Iterator[table.Rows]:
    start = 0
    with tqdm(desc="import", total=len(ids), unit="row", disable=None) as bar:
        for block in source.blocks(BLOCK_ROWS):
            part = slice(start, start + len(block))
            yield table.Rows(ids[part], None if labels is None else labels[part], {name: block})
            start += len(block)
            bar.update(len(block))


def _texts(
    source: embedding_files.Embeddings, given: str, usual: tuple[str, ...], flag: str
) -> np.ndarray | None:
    """object [rows]: ids or labels from a file, or from the file of the embeddings; else None."""
    given = given or source.beside(usual)
    if not given:
        return None
    values = embedding_files.texts(given) if Path(given).is_file() else source.texts(given)
    if len(values) != source.shape[0]:
        raise InputError(
            f"{flag}={given}: {len(values)} entries for {source.shape[0]} rows of {source.path}"
        )
    return values


def _check_ids(ids: np.ndarray, where: str) -> None:
    seen: dict[str, int] = {}
    for row, row_id in enumerate(ids):
        if row_id is None:
            raise InputError(f"{where}: row {row} has no id; every row needs a unique one")
        if row_id in seen:
            raise InputError(
                f"{where}: id {row_id!r} occurs more than once (rows {seen[row_id]} and {row}); "
                "ids must be unique"
            )
        seen[row_id] = row


def _spaces(names, gallery: table.Gallery | None) -> tuple[str, ...]:
    """Fingerprints as they are; names of columns of the gallery as their spaces."""
    spaces = []
    for name in names:
        if re.fullmatch("[0-9a-f]{64}", name):
            spaces.append(name)
        elif gallery is not None:
            spaces.append(gallery.column(name).space)
        else:
            raise InputError(
                f"--compatible_with={name}: neither a fingerprint (64 hex digits) nor a column of "
                "an existing gallery"
            )
    return tuple(spaces)


def _sha256(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    cli.run(__doc__, main, define_flags)
