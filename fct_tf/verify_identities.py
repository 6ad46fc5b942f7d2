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

from fct_tf.common import cli, files, flag_groups
from fct_tf.common.errors import InputError
from fct_tf.gallery.reader import open_gallery
from fct_tf.retrieval.identities import summary, verify


def define_flags(values: flags.FlagValues) -> None:
    """The command's flags."""
    read = flag_groups.Group(values, flag_groups.READ)
    read.required("gallery", "Gallery with labels, e.g. faces.lance@live.")
    read.required("gallery_column", "Column that is searched.")
    read.string("query", "Gallery of the queries; --gallery if empty.")
    read.required("query_column", "Column of the queries.")
    measured = flag_groups.Group(values, flag_groups.METRICS)
    measured.list("fars", "False accept rates, 1:1; empty: none.", "1e-3,1e-4")
    measured.list("fpirs", "False alarm rates, 1:N; empty: no search.", "1e-2")
    text = "Of the gallery's identities, those left out in 1:N."
    measured.number("absent_share", text, 0.5, 0, 1)
    text = "Of an identity's rows, those that its others search in 1:N."
    measured.number("enrolled_share", text, 0.5, 0, 1)
    flag_groups.define_distance(values)
    measured.integer("bootstrap", "Resamples of the intervals; 0: none.", 1000, 0)
    measured.integer("seed", "Seed of the split and the resamples.", 0, 0)
    flag_groups.Group(values, flag_groups.WRITTEN).required("output", "JSON file to write.")
    flag_groups.define_space_mismatch(values)
    flag_groups.define_overwrite(values)
    flag_groups.define_stores(values)


def main(values: flags.FlagValues) -> None:
    """Verifies what the flags name."""
    rates = {name: _rates(name, getattr(values, name)) for name in ("fars", "fpirs")}
    if not any(rates.values()):
        raise InputError("--fars and --fpirs are empty: nothing to measure; name rates in one")
    cli.check_output_files(values, output=())
    gallery = open_gallery(values.gallery)
    queries = open_gallery(values.query) if values.query else gallery
    opened = {"gallery": gallery, "query_gallery": queries, "distance": values.distance or None}
    record = verify(**cli.arguments(values, verify, **opened, **rates, progress="verify"))
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
