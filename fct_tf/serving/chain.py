"""A transformation behind the encoders whose embeddings it reads: from an image to its result.

For users who still run the old encoder: instead of two or three models behind each other, one
SavedModel whose `serving_default` takes `image` uint8 `[n, h, w, 3]` and whose `encoded` takes
`image_bytes` string `[n]`; both return `embedding` float32 `[n, d_target]` (and `log_variance`
where the transformation has it). Each encoder resizes and scales the image its own way.
"""

import os
from typing import Any

import numpy as np
import tensorflow as tf

from fct_tf.common.errors import InputError
from fct_tf.common.files import sha256_json
from fct_tf.models import export
from fct_tf.models.signatures import Endpoint, Served, Tensors

# Input of the transformation -> its name in flags and descriptions.
ROLES = {"source_embedding": "source", "side_info": "side_info"}
FLAGS = {"source_embedding": "--encoder", "side_info": "--side_info_encoder"}


def build(
    model: str | os.PathLike,
    encoder: str | os.PathLike,
    side_info_encoder: str | os.PathLike = "",
    *,
    dtype: str = "float32",
    known: Any = None,
) -> Served:
    """A chain of models.

    Args:
      model: artifact of the transformation, or of a map of the query side.
      encoder: the model that made its source embeddings: an artifact, or a Keras file or
        SavedModel of the user's own.
      side_info_encoder: the model of its side-information, where it has that.
      dtype: of the transformation's arithmetic.
      known: see `fct_tf.models.foreign.load`.

    Raises:
      InputError: no such model, an encoder of another space than the transformation reads, one
        too few or too many.
    """
    last = export.build(model, dtype=dtype)
    if last.info["kind"] != "transformation":
        raise InputError(f"--model={model}: --encoder is for transformations, it is an encoder")
    paths = {"source_embedding": encoder, "side_info": side_info_encoder}
    encoders: dict[str, Served] = {}
    for role, path in paths.items():
        reads = role in last.info["dims"]
        if reads != bool(path):
            needs = "also reads side-information; name its model with" if reads else "reads none;"
            rest = "" if reads else " leave out"
            raise InputError(f"--model={model}: {needs}{rest} {FLAGS[role]}")
        if path:
            encoders[role] = _encoder(path, role, last, known)

    def transformed(signature: str, images: tf.Tensor) -> dict[str, tf.Tensor]:
        embeddings = [one.endpoints[signature][0](images) for one in encoders.values()]
        function, _ = last.endpoints["serving_default"]
        return function(*(one["embedding"] for one in embeddings))

    endpoints: dict[str, Endpoint] = {}
    for name in ("serving_default", "encoded"):
        specs = encoders["source_embedding"].endpoints[name][1]
        endpoints[name] = (lambda images, name=name: transformed(name, images), specs)

    def expected(signature: str, inputs: Tensors) -> dict[str, np.ndarray]:
        rows = {role: one.expected(signature, inputs) for role, one in encoders.items()}
        return last.expected(
            "serving_default", {role: found["embedding"] for role, found in rows.items()}
        )

    spaces = {role: last.info[f"{short}_space"] for role, short in ROLES.items() if paths[role]}
    info = {
        **last.info,
        "kind": "chain",
        # As `upgrade_gallery` names what it makes of the same columns.
        "space": sha256_json({"transformation": last.info["space"], **spaces}),
        "compatible_with": [last.info["target_space"]],
        "transformation_space": last.info["space"],
        "dims": {"embedding": last.info["dims"]["embedding"]},
        "preprocessing": encoders["source_embedding"].info["preprocessing"],
        "encoders": {
            role: {key: one.info[key] for key in ("name", "space", "preprocessing")}
            for role, one in encoders.items()
        },
    }
    return Served(endpoints, info, expected, last.tolerance)


def _encoder(path: str | os.PathLike, role: str, last: Served, known: Any) -> Served:
    served = export.build(path, known=known)
    if served.info["kind"] != "query_encoder":
        raise InputError(f"{FLAGS[role]}={path}: a transformation; name a model of images")
    wanted = last.info[f"{ROLES[role]}_space"]
    info = served.info
    if wanted not in (info["space"], *info["compatible_with"]):
        raise InputError(
            f"{FLAGS[role]}={path}: makes embeddings of space {info['space']} (model "
            f"{info['name']}), but the transformation reads {role} from space {wanted} (model "
            f"{last.info[f'{ROLES[role]}_model'] or 'unknown'}); name that model"
        )
    dim = last.info["dims"][role]
    if info["dims"]["embedding"] != dim:
        raise InputError(
            f"{FLAGS[role]}={path}: makes {info['dims']['embedding']} values, the transformation "
            f"reads {dim} as {role}"
        )
    return served
