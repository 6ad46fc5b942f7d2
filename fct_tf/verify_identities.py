"""Verifies identities by two columns: 1:1 (TAR at FAR, ROC) and open-set 1:N (TPIR at FPIR).

For faces, vehicles, products: labels are identities, and a system must not only rank but say
"the same" or "nobody I know". All pairs of labelled rows of different ids are compared. For the
open-set search a seeded half of the gallery's identities is left out, so that their queries are
strangers. In rows that are in the gallery and queries too (--query not given), half of the rows
of each other identity are searched by the other half.

    python -m fct_tf.verify_identities --gallery=faces.lance --gallery_column=embedding_fct \\
        --query_column=embedding_new --output=verification.json

Thresholds in the output are distances, strictly below which a pair passes. The same --seed draws
the same split for every column of a gallery, so that cases can be compared.
"""

from absl import flags

from fct_tf.common import cli, files
from fct_tf.common.errors import InputError
from fct_tf.gallery.reader import open_gallery
from fct_tf.retrieval.identities import summary, verify


def define_flags(values: flags.FlagValues) -> None:
    """The command's flags."""

    def string(name, text, default=None):
        flags.DEFINE_string(name, default, text, required=default is None, flag_values=values)

    def share(name, text, default):
        flags.DEFINE_float(name, default, text, 0, 1, flag_values=values)

    string("gallery", "Gallery with labels, e.g. faces.lance@live.")
    string("gallery_column", "Column that is searched.")
    string("query", "Gallery of the queries; --gallery if empty.", "")
    string("query_column", "Column of the queries.")
    string("output", "JSON file to write.")
    flags.DEFINE_list("fars", "1e-3,1e-4", "False accept rates, 1:1; empty: none.", values)
    flags.DEFINE_list("fpirs", "1e-2", "False alarm rates, 1:N; empty: no search.", values)
    share("absent_share", "Of the gallery's identities, those left out in 1:N.", 0.5)
    share("enrolled_share", "Of an identity's rows, those that its others search in 1:N.", 0.5)
    flags.DEFINE_enum(
        "distance", "", ["", "l2", "cosine"], "Of rows; empty: that of the gallery column.", values
    )
    flags.DEFINE_integer("bootstrap", 1000, "Resamples of the intervals; 0: none.", 0, None, values)
    flags.DEFINE_integer("seed", 0, "Seed of the split and the resamples.", 0, None, values)
    flags.DEFINE_boolean("allow_space_mismatch", False, "Compare spaces that do not fit.", values)
    cli.define_overwrite(values)


def main(values: flags.FlagValues) -> None:
    fars, fpirs = _rates("fars", values.fars), _rates("fpirs", values.fpirs)
    if not fars and not fpirs:
        raise InputError("--fars and --fpirs are empty: nothing to measure; name rates in one")
    files.check_output_file(values.output, values.overwrite, "--output")
    gallery = open_gallery(values.gallery)
    record = verify(
        open_gallery(values.query) if values.query else gallery,
        values.query_column,
        gallery,
        values.gallery_column,
        fars=fars,
        fpirs=fpirs,
        absent_share=values.absent_share,
        enrolled_share=values.enrolled_share,
        distance=values.distance or None,
        bootstrap=values.bootstrap,
        seed=values.seed,
        allow_space_mismatch=values.allow_space_mismatch,
        progress="verify",
    )
    files.write_json(values.output, record)
    print(f"{summary(record)} -> {values.output}")


def _rates(flag: str, texts: list[str]) -> list[float]:
    try:
        rates = sorted({float(text) for text in texts}, reverse=True)
    except ValueError:
        rates = [0.0]
    if not all(0 < rate < 1 for rate in rates):
        raise InputError(
            f"--{flag}={','.join(texts)}: rates between 0 and 1, e.g. --{flag}=1e-2,1e-3"
        )
    return rates


if __name__ == "__main__":
    cli.run(__doc__, main, define_flags)
