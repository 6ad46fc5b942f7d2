"""The signature by which a served model says what it is: its spaces, dimensions and names.

A model server returns a SavedModel's signatures and nothing else; what lies beside it, in
`assets.extra/fct_tf.json`, stays on its disk. So the description is also a constant in the graph:
a signature `about` that answers with it, from whichever server loads the SavedModel.

Its input `row`, int32 `[n]`, is there because a batching server wants one with a first dimension;
its values do not matter. The output `about`, string `[n]`, is the description as JSON, once per
row, so that batched requests can be taken apart again.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fct_tf.models.info import check_info

SIGNATURE = "about"
INPUT = "row"
OUTPUT = "about"


def endpoint(info: Mapping[str, Any]) -> tuple[Callable, list]:
    """The signature of a model, as `keras.export.ExportArchive.add_endpoint` takes it.

    Args:
      info: what `assets.extra/fct_tf.json` says, with its `format`.

    Returns:
      A function of `row` int32 `[n]` that returns `{"about": string [n]}`, and its input
      specifications.
    """
    import tensorflow as tf  # Clients read descriptions and need none of it.

    text = json.dumps(info, sort_keys=True, allow_nan=False)

    def describe(row: tf.Tensor) -> dict[str, tf.Tensor]:
        return {OUTPUT: tf.fill(tf.shape(row), text)}

    return describe, [tf.TensorSpec([None], tf.int32, name=INPUT)]


def question() -> dict[str, np.ndarray]:
    """The inputs of a request that asks once."""
    return {INPUT: np.zeros(1, np.int32)}


def read(reply: Mapping[str, np.ndarray], where: str = "the server") -> dict[str, Any]:
    """The description that a server answered with.

    Args:
      reply: outputs of the signature: `about`, bytes or text, `[n]` with `n` of 1 or more.
      where: how messages name the server and the model.

    Returns:
      What `assets.extra/fct_tf.json` of the served version says.

    Raises:
      InputError: an answer that is no description, or one of a newer format.
    """
    try:
        info = json.loads(np.ravel(reply[OUTPUT])[0])
    except (KeyError, IndexError, TypeError, ValueError):
        info = None
    check_info(info, where)
    return info
