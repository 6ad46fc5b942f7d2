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

from fct_tf.common import cli, flag_groups
from fct_tf.common.errors import InputError
from fct_tf.gallery.columns import DISTANCES, KINDS
from fct_tf.ingest import adopt
from fct_tf.ingest.import_files import import_embeddings


def define_flags(values: flags.FlagValues) -> None:
    """The command's flags."""
    read = flag_groups.Group(values, flag_groups.READ)
    read.string(
        "embeddings",
        "File (.npy, .npz, .h5, .hdf5 or .parquet), folder of Parquet files, or .lance table.",
    )
    text = "Array or column of the file that holds the embeddings; found if there is one."
    read.string("key", text)
    read.string(
        "ids",
        "Ids: an array or column of --embeddings, otherwise a file: .txt (one per line, UTF-8) "
        "or .npy. Default: 'id' or 'ids' of --embeddings, otherwise MODEL_NAME:ROW.",
    )
    text = "Labels, as --ids; empty ones are null. An existing gallery keeps its own."
    read.string("labels", text)
    text = "Make the Lance table --gallery a gallery where it lies."
    read.boolean("adopt", text)
    written = flag_groups.Group(values, flag_groups.WRITTEN)
    text = "Gallery to make or to add the column to; with --adopt, the table."
    written.required("gallery", text)
    written.string("column", "Name of the new column.")
    written.required("model_name", "Name of the model; its SHA-256 is the space.")
    written.choice("distance", "How to compare the rows.", "l2", DISTANCES)
    written.choice("kind", "What the column is.", "imported", KINDS)
    text = "Spaces it may also be compared with: fingerprints, or columns of the gallery."
    written.list("compatible_with", text)
    flag_groups.define_zero_vectors(values)
    flag_groups.define_overwrite(values)
    flag_groups.define_drop_indices(values)
    flag_groups.define_stores(values)


def main(values: flags.FlagValues) -> None:
    """Imports or adopts what the flags name."""
    if values.adopt:
        print(_adopt(values))
        return
    for name in ("embeddings", "column"):
        if not values[name].value:
            raise InputError(f"--{name} is missing; see --help")
    gallery = import_embeddings(**cli.arguments(values, import_embeddings))
    column = gallery.columns[values.column]
    print(
        f"{gallery.path}, version {gallery.version}: column {column.name!r}, "
        f"{gallery.num_rows} rows of {column.dim} {column.dtype}, space {column.space}"
    )


def _adopt(values: flags.FlagValues) -> adopt.Adopted:
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
    where = {"path": values.gallery, "key": values.key or values.column}
    return adopt.adopt(**cli.arguments(values, adopt.adopt, **where))


if __name__ == "__main__":
    cli.run(__doc__, main, define_flags)
