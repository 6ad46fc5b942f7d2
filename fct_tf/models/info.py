"""The description of a SavedModel of this package: what its signatures cannot say.

Spaces, distance, dimensions, model names. It lies beside `saved_model.pb`, in a directory that
TF Serving leaves alone. This module needs no TensorFlow.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fct_tf.common.errors import InputError
from fct_tf.common.files import read_json

INFO = Path("assets.extra") / "fct_tf.json"
FORMAT = 1
# Kinds that read stored rows: a map to the new model's space, and one with a fusion behind it.
TRANSFORMS = ("transformation", "fused")
# What their signatures read, in the order in which they are called.
ROLES = ("source_embedding", "side_info", "target_embedding")
ROWS, QUERY = "rows", "query"  # Signatures of a fused search: re-embedded rows, queries.
_NEEDED = {"format", "kind", "name", "space", "distance"}


def read_info(directory: str | os.PathLike) -> dict[str, Any]:
    """What `assets.extra/fct_tf.json` of a SavedModel says.

    Raises:
      InputError: it is missing or broken, or of a newer format.
    """
    path = Path(directory) / INFO
    if not path.exists():
        raise InputError(
            f"{directory}: a SavedModel without {INFO}, so its embedding spaces are unknown; "
            "export the artifact with export_serving"
        )
    info = read_json(path)
    check_info(info, str(path))
    return info


def check_fused(info: dict[str, Any], where: str, argument: str = "``side``") -> None:
    """Refuses the query side of a transformation without one.

    Raises:
      InputError: names `where`, and the argument that asked for it.
    """
    if info["kind"] != "fused":
        raise InputError(
            f"{where}: {info['name']} is no fused search, its queries are the new model's own "
            f"embeddings; leave {argument} out"
        )


def dims_of(inputs: Mapping[str, Any], embedding: int) -> dict[str, int]:
    """Dimensions of what a signature of a transformation reads, in the order of `ROLES`.

    Args:
      inputs: name -> specification, with a `shape`.
      embedding: what it makes; comes last.
    """
    dims = {role: (inputs[role].shape or (0,))[-1] or 0 for role in ROLES if role in inputs}
    return {**dims, "embedding": embedding}


def check_info(info: Any, where: str) -> None:
    """Refuses what is no description, or one of a newer format.

    Raises:
      InputError: names `where`.
    """
    if not isinstance(info, dict) or not _NEEDED <= {*info} or not isinstance(info["format"], int):
        raise InputError(f"{where}: not a description of a SavedModel; export the artifact again")
    if info["format"] > FORMAT:
        raise InputError(
            f"{where}: has format {info['format']}, this version reads up to {FORMAT}; "
            "install a newer fct_tf"
        )
