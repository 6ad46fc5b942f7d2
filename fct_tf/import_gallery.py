"""Imports embeddings made elsewhere, of any framework and modality, as a column of a gallery.

A new gallery is made, or a column is added to an existing one, its rows matched by id. It reads
npy, npz, HDF5 and Parquet files, folders of Parquet files (in the order of their names) and Lance
or LanceDB tables. The space is the SHA-256 of the model name, so give two imports of one model the
same name.

    python -m fct_tf.import_gallery --gallery=photos.lance --embeddings=clip.npy --ids=ids.txt \\
        --labels=labels.txt --column=embedding_old --model_name=clip-vit-b32 --distance=cosine

With --adopt a Lance or LanceDB table becomes a gallery where it lies, in one commit: its vectors
stay where they are, and so do its other columns and its indices. Columns 'id' and 'label' are
added where it has none, and metadata that says what the vectors are.

    python -m fct_tf.import_gallery --adopt --gallery=db/photos.lance --key=vector --ids=photo_id \\
        --labels=album --model_name=clip-vit-b32 --distance=cosine

Ids and labels are text, whole numbers or UUIDs. A column of exactly 16 bytes per row (Parquet's
and Arrow's UUID, fixed_size_binary(16), NumPy's V16, HDF5's opaque) holds UUIDs and becomes their
usual text. Bytes of any length are text where all are printable UTF-8, else UUIDs where all have
16 bytes; what is neither is refused.
"""

from absl import flags

from fct_tf.common import cli
from fct_tf.common.errors import InputError
from fct_tf.gallery.columns import DISTANCES, KINDS
from fct_tf.ingest import adopt
from fct_tf.ingest.import_files import import_embeddings


def define_flags(values: flags.FlagValues) -> None:
    for name, text in (
        ("gallery", "Gallery to make or to add the column to; with --adopt, the table."),
        ("model_name", "Name of the model; its SHA-256 is the space."),
    ):
        flags.DEFINE_string(name, None, text, required=True, flag_values=values)
    for name, text in (
        (
            "embeddings",
            "File (.npy, .npz, .h5, .hdf5 or .parquet), folder of Parquet files, or .lance table.",
        ),
        ("column", "Name of the new column."),
        ("key", "Array or column of the file that holds the embeddings; found if there is one."),
        (
            "ids",
            "Ids: an array or column of --embeddings, otherwise a file: .txt (one per line, UTF-8) "
            "or .npy. Default: 'id' or 'ids' of --embeddings, otherwise MODEL_NAME:ROW.",
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
    flags.DEFINE_boolean(
        "adopt", False, "Make the Lance table --gallery a gallery where it lies.", values
    )
    cli.define_zero_vectors(values)
    cli.define_overwrite(values)
    cli.define_drop_indices(values)


def main(values: flags.FlagValues) -> None:
    if values.adopt:
        _adopt(values)
        return
    for name in ("embeddings", "column"):
        if not values[name].value:
            raise InputError(f"--{name} is missing; see --help")
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
        zero_vectors=values.zero_vectors,
        overwrite=values.overwrite,
        drop_indices=values.drop_indices,
    )
    column = gallery.columns[values.column]
    print(
        f"{gallery.path}, version {gallery.version}: column {column.name!r}, "
        f"{gallery.num_rows} rows of {column.dim} {column.dtype}, space {column.space}"
    )


def _adopt(values: flags.FlagValues) -> None:
    if values.embeddings:
        raise InputError(
            "--embeddings: --adopt takes the vectors of --gallery as they lie; leave one of the "
            "two flags out"
        )
    if values.column and values.key and values.column != values.key:
        raise InputError(
            f"--column={values.column}: an adopted column keeps its name, {values.key!r}; leave "
            "--column out"
        )
    made = adopt.adopt(
        values.gallery,
        values.model_name,
        key=values.key or values.column,
        ids=values.ids,
        labels=values.labels,
        distance=values.distance,
        kind=values.kind,
        compatible_with=values.compatible_with,
        zero_vectors=values.zero_vectors,
        overwrite=values.overwrite,
    )
    print(made)


if __name__ == "__main__":
    cli.run(__doc__, main, define_flags)
