"""What an old classifier that was extended by synthesized classes makes of the old embeddings.

BCT (arXiv 2003.11942, section 3.4) gives a class that the old model never saw the mean old
embedding of its images as weights. Compatible embeddings are to be classified right by the extended
classifier; this says whether the old embeddings themselves are.

  python benchmarks/synthesized_classes.py --model=runs/omniglot/seed_0/old/artifact \\
      --gallery=runs/omniglot/seed_0/rows/train/gallery.lance --column=embedding_old \\
      --output=results/synthesized_classes.json
"""

import sys

import machine
import numpy as np
from absl import flags

from fct_tf.common import cli
from fct_tf.common.files import write_records
from fct_tf.common.provenance import library_versions
from fct_tf.gallery import table
from fct_tf.models import artifact
from fct_tf.training import compatibility


def measure(model: str, gallery: str, column: str) -> dict:
    """Accuracy on images of old and of new classes, plain and centred; fractions."""
    old = artifact.load(model)
    assert old.classifier is not None
    weights, names = old.classifier
    rows = table.open_gallery(gallery).read([column], with_labels=True)
    vectors, labels = rows.vectors[column], np.asarray(rows.labels).astype(str)
    classes, number = np.unique(labels, return_inverse=True)
    known = compatibility.match_classes(classes.tolist(), names)
    seen = known[number] >= 0
    right = (vectors[seen] @ weights).argmax(axis=1) == known[number[seen]]
    made: dict = {
        "old_classes": len(names),
        "new_classes": int(np.sum(known < 0)),
        "old_classifier": {"old_classes": float(right.mean())},
        "mean_length": float(np.linalg.norm(vectors, axis=1).mean()),
        "length_of_mean": float(np.linalg.norm(vectors.mean(axis=0))),
    }
    for name, centred in (("synthesized", False), ("centred", True)):
        extended, place = compatibility.synthesize(weights, known, vectors, number, centred)
        right = (vectors @ extended).argmax(axis=1) == place[number]
        made[name] = {
            "old_classes": float(right[seen].mean()),
            "new_classes": float(right[~seen].mean()),
        }
    return made


def define_flags(values: flags.FlagValues) -> None:
    for name, text in (
        ("model", "Artifact of the old model, with its classifier."),
        ("gallery", "Table of the new model's training images."),
        ("column", "Their old embeddings."),
        ("output", "JSON file to write."),
    ):
        flags.DEFINE_string(name, None, text, required=True, flag_values=values)


def main(values: flags.FlagValues) -> None:
    made = measure(values.model, values.gallery, values.column)
    record = {"command": machine.command(sys.argv), "versions": library_versions(), **made}
    write_records(values.output, record)
    print(made)


if __name__ == "__main__":
    cli.run(__doc__, main, define_flags)
