"""The description of a SavedModel of this package: what its signatures cannot say.

Spaces, distance, dimensions, model names. It lies beside `saved_model.pb`, in a directory that
TF Serving leaves alone. This module needs no TensorFlow.
"""

import os
from pathlib import Path
from typing import Any

from fct_tf.common.errors import InputError
from fct_tf.common.files import read_json

INFO = Path("assets.extra") / "fct_tf.json"
FORMAT = 1
# Kinds that read stored rows: a map to the new model's space, and one with a fusion behind it.
TRANSFORMS = ("transformation", "fused")
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
