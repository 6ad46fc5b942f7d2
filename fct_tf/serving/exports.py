"""A model of any kind published as a version that TF Serving loads, checked on the way."""

import os
from collections.abc import Sequence

from fct_tf.common.errors import InputError
from fct_tf.gallery import known, reader
from fct_tf.models import export
from fct_tf.models import info as infos
from fct_tf.serving import accuracy, chain, publish, top_k, warmup


def export_model(
    model: str | os.PathLike,
    output: str,
    *,
    encoder: str = "",
    side_info_encoder: str = "",
    target_encoder: str = "",
    gallery: str = "",
    column: str = "",
    version: int = 0,
    dtype: str = "float32",
    batch_sizes: Sequence[int] = warmup.BATCH_SIZES,
    warmup_rows: str = "",
    warmup_images: str = "",
    verify: bool = True,
    tolerance: float = 0.0,
    overwrite: bool = False,
) -> str:
    """Publishes a model, or what searches a column of a small gallery; returns the version's path.

    The arguments are the flags of the command `export_serving`.

    Raises:
      InputError: no such model or gallery, arguments that do not go together, an existing
        version, a SavedModel that differs from the model.
    """
    if bool(model) == bool(gallery):
        raise InputError("name either ``model`` or, to search it, ``gallery``")
    if bool(gallery) != bool(column):
        raise InputError("``gallery`` and ``column`` belong together")
    for name, given in (
        ("side_info_encoder", side_info_encoder),
        ("target_encoder", target_encoder),
    ):
        if given and not encoder:
            raise InputError(f"``{name}``: name ``encoder`` too")
    if gallery and (encoder or dtype != "float32"):
        raise InputError("``gallery``: ``encoder`` and ``dtype`` are for ``model``")
    rows = reader.open_gallery(warmup_rows) if warmup_rows else None
    spaces = known.spaces(rows) if rows else None
    if gallery:
        served = top_k.build(gallery, column)
    elif encoder:
        served = chain.build(
            str(model), encoder, side_info_encoder, target_encoder, dtype=dtype, known=spaces
        )
    else:
        served = export.build(model, dtype=dtype, known=spaces)
    check = None
    if served.info["kind"] in infos.TRANSFORMS and dtype != "float32":

        def check(directory):
            return accuracy.measure(directory, served, warmup_rows)

    sizes = sorted(set(batch_sizes))
    source = warmup.source(served, warmup_rows, warmup_images, max(sizes, default=1))
    return publish.publish(
        served,
        output,
        version=version,
        overwrite=overwrite,
        batch_sizes=sizes,
        source=source,
        verify=verify,
        tolerance=tolerance,
        check=check,
    )
