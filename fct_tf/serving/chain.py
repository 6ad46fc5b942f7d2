"""A transformation behind the encoders whose embeddings it reads: from an image to its result.

For users who still run the old encoder: instead of two or three models behind each other, one
SavedModel whose `serving_default` takes `image` uint8 `[n, h, w, 3]` and whose `encoded` takes
`image_bytes` string `[n]`; both return `embedding` float32 `[n, d_target]` (and `log_variance`
where the transformation has it). Each encoder resizes and scales the image its own way. Where all
of them take images of one size, `resized` takes `image` uint8 of that.

Of a fused search that is the gallery side, images embedded by the old model. With the new model
too it is the query encoder: what it returns are queries.
"""

import os
from typing import Any

import numpy as np
import tensorflow as tf

from fct_tf.common.errors import InputError
from fct_tf.common.files import sha256_json
from fct_tf.common.image_size import height_width
from fct_tf.models import export, preprocess, saved_model
from fct_tf.models import info as infos
from fct_tf.models.signatures import Endpoint, Served, Tensors
from fct_tf.upgrade.inputs import ROLES

FLAGS = {
    "source_embedding": "``encoder``",
    "side_info": "``side_info_encoder``",
    "target_embedding": "``target_encoder``",
}


def build(
    model: str | os.PathLike,
    encoder: str | os.PathLike,
    side_info_encoder: str | os.PathLike = "",
    target_encoder: str | os.PathLike = "",
    *,
    dtype: str = "float32",
    known: Any = None,
) -> Served:
    """A chain of models.

    Args:
      model: artifact of the transformation, of a map of the query side, or of a fused search.
      encoder: the model that made its source embeddings: an artifact, or a Keras file or
        SavedModel of the user's own.
      side_info_encoder: the model of its side-information, where it has that.
      target_encoder: of a fused search, the model of its target embeddings: the chain makes
        queries, which need no side-information.
      dtype: of the transformation's arithmetic.
      known: see `fct_tf.models.foreign.load`.

    Raises:
      InputError: no such model, an encoder of another space than the transformation reads, one
        too few or too many.
    """
    last = export.build(model, dtype=dtype)
    if last.info["kind"] not in infos.TRANSFORMS:
        raise InputError(f"``model={model}``: ``encoder`` is for transformations, it is an encoder")
    name = "serving_default"
    if target_encoder:
        infos.check_fused(last.info, f"``model={model}``", "``target_encoder``")
        name = infos.QUERY
    function, specs = last.endpoints[name]
    paths = dict(zip(ROLES, (encoder, side_info_encoder, target_encoder), strict=True))
    encoders: dict[str, Served] = {}
    for role, path in paths.items():
        reads = role in [spec.name for spec in specs]
        if reads != bool(path):
            needs = "also reads side-information; name its model with" if reads else "reads none;"
            if target_encoder:
                needs = "makes queries without side-information;"
            rest = "" if reads else " leave out"
            raise InputError(f"``model={model}``: {needs}{rest} {FLAGS[role]}")
        if path:
            encoders[role] = _encoder(path, role, last, known)

    def transformed(signature: str, images: tf.Tensor) -> dict[str, tf.Tensor]:
        embeddings = [one.endpoints[signature][0](images) for one in encoders.values()]
        return function(*(one["embedding"] for one in embeddings))

    first = encoders["source_embedding"]
    sizes = {_resizing(one) for one in encoders.values()}
    endpoints: dict[str, Endpoint] = {
        signature: (
            lambda images, signature=signature: transformed(signature, images),
            first.endpoints[signature][1],
        )
        for signature in ("serving_default", "encoded", *[saved_model.RESIZED][len(sizes) > 1 :])
    }

    def expected(signature: str, inputs: Tensors) -> dict[str, np.ndarray]:
        rows = {role: one.expected(signature, inputs) for role, one in encoders.items()}
        return last.expected(name, {role: outputs["embedding"] for role, outputs in rows.items()})

    space, compatible_with = _space(last, encoders)
    info = {
        **last.info,
        "kind": "chain",
        **({"side": "query"} if target_encoder else {}),
        "space": space,
        "compatible_with": compatible_with,
        "transformation_space": last.info["space"],
        "dims": {"embedding": last.info["dims"]["embedding"]},
        "preprocessing": first.info["preprocessing"],
        "encoders": {
            role: {key: one.info[key] for key in ("name", "space", "preprocessing")}
            for role, one in encoders.items()
        },
    }
    return Served(endpoints, info, expected, last.tolerance)


def _resizing(served: Served) -> tuple:
    """How images reach the model: all but what it does with the pixels."""
    settings = served.info["preprocessing"]
    size = height_width(settings["size"])
    return size, settings["resize"], preprocess.orientation(settings)


def _space(last: Served, encoders: dict[str, Served]) -> tuple[str, list[str]]:
    """The space of what comes out, as `upgrade_gallery` names it, and what it fits."""
    spaces = {role: last.info[f"{ROLES[role]}_space"] for role in encoders}
    fits, read = last.info["target_space"], spaces
    if last.info["kind"] == "fused":
        fits, read = (
            last.info["fused_space"],
            {role: e.info["space"] for role, e in encoders.items()},
        )
        if read == spaces:
            return fits, []
    return sha256_json({"transformation": last.info["space"], **read}), [fits]


def _encoder(path: str | os.PathLike, role: str, last: Served, known: Any) -> Served:
    served = export.build(path, known=known)
    if served.info["kind"] != "query_encoder":
        raise InputError(f"{FLAGS[role]}={path}: a transformation; name a model of images")
    expected = last.info[f"{ROLES[role]}_space"]
    info = served.info
    if expected not in (info["space"], *info["compatible_with"]):
        raise InputError(
            f"{FLAGS[role]}={path}: makes embeddings of space {info['space']} (model "
            f"{info['name']}), but the transformation reads {role} from space {expected} (model "
            f"{last.info[f'{ROLES[role]}_model'] or 'unknown'}); name that model"
        )
    dim = last.info["dims"][role]
    if info["dims"]["embedding"] != dim:
        raise InputError(
            f"{FLAGS[role]}={path}: makes {info['dims']['embedding']} values, the transformation "
            f"reads {dim} as {role}"
        )
    return served
