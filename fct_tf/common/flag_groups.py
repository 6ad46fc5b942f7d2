"""Flags in groups by what they are for, and the groups that several commands have.

absl keeps with each flag the module that defined it. Here the heading of its group, which ends with
a colon, takes that place: --help shows what is in a group.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from absl import flags

from fct_tf.common import image_size

# Headings that several commands have.
READ = "What is read:"
WRITTEN = "What is written:"
METRICS = "What is measured:"
RUN = "How it runs:"
ALLOWED = "What is allowed:"
OWN_MODEL = "What a model of your own (.keras, .h5, SavedModel) expects:"

IMAGES = (
    "tfds:NAME:SPLIT, folder:PATH[:SPLIT], files:PATH[:SPLIT] or glyphs:SPLIT. In a folder, "
    "PATH/<split>/<class>/<file> has the id <split>/<class>/<file> and the label <class>; where no "
    "directory directly below holds images, PATH/<split>/<file> (or deeper) has the id "
    "<split>/<file> and no label. files: takes every image at any depth, without labels. JPEG and "
    "PNG; photographs are turned as their EXIF orientation says."
)


@dataclasses.dataclass(frozen=True)
class Group:
    """Defines flags that --help lists under one heading."""

    values: flags.FlagValues
    heading: str

    def required(self, name: str, text: str) -> None:
        """A text that must be given."""
        self._define(flags.DEFINE_string, name, None, text, required=True)

    def string(self, name: str, text: str, default: str = "") -> None:
        self._define(flags.DEFINE_string, name, default, text)

    def boolean(self, name: str, text: str, default: bool | None = False) -> None:
        self._define(flags.DEFINE_boolean, name, default, text)

    def integer(self, name: str, text: str, default: int | None, *bounds: int | None) -> None:
        """bounds: the lowest number, and perhaps the highest."""
        self._define(flags.DEFINE_integer, name, default, text, *bounds)

    def number(self, name: str, text: str, default: float | None, *bounds: float | None) -> None:
        """As `integer`, of any number."""
        self._define(flags.DEFINE_float, name, default, text, *bounds)

    def choice(self, name: str, text: str, default: str | None, words: Sequence[str]) -> None:
        """One of `words`, or what the default is."""
        words = words if default is None or default in words else [default, *words]
        self._define(flags.DEFINE_enum, name, default, words, text)

    def list(self, name: str, text: str, default: str = "") -> None:
        """Several words, separated by commas."""
        self._define(flags.DEFINE_list, name, default, text)

    def repeated(self, kind: Any, name: str, text: str, required: bool = False) -> None:
        """May be given several times. kind: `flags.DEFINE_multi_string` or the like."""
        self._define(kind, name, None if required else [], text, required=required)

    def _define(self, define: Any, *what: Any, **more: Any) -> None:
        define(*what, flag_values=self.values, module_name=self.heading, **more)


def of(values: flags.FlagValues) -> dict[str, list[flags.Flag]]:
    """Heading -> its flags, in the order in which they were defined."""
    by_module = values.flags_by_module_dict()
    return {heading: flags for heading, flags in by_module.items() if heading.endswith(":")}


def define_training(values: flags.FlagValues) -> None:
    """Defines the flags that all training commands share: --workdir, --seed, --overwrite."""
    text = "Directory of this run (one process at a time): checkpoints, summaries, artifact."
    Group(values, WRITTEN).required("workdir", text)
    Group(values, RUN).integer("seed", "Seed of every random number.", 0)
    define_overwrite(values)


def define_own_model(values: flags.FlagValues) -> None:
    """Defines what is said of a model of the user's own; `own_model` reads it."""
    own = Group(values, OWN_MODEL)
    own.string("model_name", "Its human name; by default its file's.")
    own.string("image_size", "Pixels, 224, or height x width, 160x96, where it takes any size.")
    own.string("signature", "Which one of a SavedModel; serving_default if not given.")
    own.string("output_name", "Which output is the embedding, where it has several.")
    recorded = "if not given, as the gallery's embeddings of that model had it, otherwise"
    for name, text, words in (
        (
            "preprocessing",
            f"What it expects of pixels; {recorded} raw.",
            ["raw", "symmetric", "imagenet"],
        ),
        (
            "resize",
            "How images are brought to its size; bilinear_antialias if not given.",
            ["bilinear_antialias", "center_crop"],
        ),
        ("distance", "How its embeddings are compared; l2 if not given.", ["l2", "cosine"]),
        (
            "orientation",
            "Whether photographs are turned as EXIF says, which columns made before it was read "
            f"ignored; {recorded} applied.",
            ["applied", "ignored"],
        ),
    ):
        own.choice(name, text, "", words)


def own_model(values: flags.FlagValues) -> dict:
    """The flags of `define_own_model` that were given, as `fct_tf.models.foreign.load` has them.

    Raises:
      InputError: a size that is none.
    """
    given = {flag.name: flag.value for flag in of(values)[OWN_MODEL] if flag.value}
    if "model_name" in given:
        given["name"] = given.pop("model_name")
    if "image_size" in given:
        given["image_size"] = image_size.parse(given["image_size"])
    return given


def define_overwrite(values: flags.FlagValues) -> None:
    """Defines --overwrite."""
    text = "Replace an existing output; otherwise it is refused."
    Group(values, ALLOWED).boolean("overwrite", text)


def define_drop_indices(values: flags.FlagValues) -> None:
    """Defines --drop_indices, beside --overwrite where what is replaced may have some."""
    text = "Overwrite although it has Lance indices: they are dropped and have to be built anew."
    Group(values, ALLOWED).boolean("drop_indices", text)


def define_zero_vectors(values: flags.FlagValues) -> None:
    """Defines --zero_vectors."""
    Group(values, ALLOWED).choice(
        "zero_vectors",
        "Where the distance is cosine: refuse rows that have no direction (zeros, or a length "
        "that float32 cannot square), or keep and count them.",
        "refuse",
        ["refuse", "keep"],
    )


def define_stores(values: flags.FlagValues) -> None:
    """Defines --storage_options; `fct_tf.common.cli` takes it."""
    Group(values, RUN).string(
        "storage_options",
        "JSON file of the options that open s3://, gs:// and az:// paths, such as aws_endpoint, "
        "aws_access_key_id, aws_secret_access_key, aws_region, allow_http; by default what "
        "FCT_TF_STORAGE_OPTIONS names, and AWS_*, GOOGLE_*, AZURE_* of the environment.",
    )


def define_engine(values: flags.FlagValues) -> None:
    """Defines --engine and --spark_master; `fct_tf.engines.engine.open_engine` takes them."""
    run = Group(values, RUN)
    text = "What does the work: this process, or a Spark cluster (pip install 'fct_tf[spark]')."
    run.choice("engine", text, "local", ["local", "spark"])
    run.string(
        "spark_master",
        "For --engine=spark: local[2], spark://HOST:7077, yarn ..; by default what spark-submit, "
        "or Spark's own configuration, says.",
    )


def define_space_mismatch(
    values: flags.FlagValues, text: str = "Compare spaces that do not fit."
) -> None:
    """Defines --allow_space_mismatch."""
    Group(values, ALLOWED).boolean("allow_space_mismatch", text)


def define_data_dir(values: flags.FlagValues) -> None:
    """Defines --data_dir."""
    Group(values, READ).string("data_dir", "Where TFDS keeps its data; by default TFDS_DATA_DIR.")


def define_distance(values: flags.FlagValues, whose: str = "the gallery column") -> None:
    """Defines --distance of rows that are compared."""
    text = f"Of rows; empty: that of {whose}."
    Group(values, METRICS).choice("distance", text, "", ["l2", "cosine"])
