"""A model as it will be served: its signatures, its description, and what it has to answer."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from fct_tf.common.files import write_json
from fct_tf.models import about
from fct_tf.models import info as infos

Endpoint = tuple[Callable, list[tf.TensorSpec]]
Tensors = Mapping[str, np.ndarray]

# Largest error of a row, as a share of its length, that rounding in another order may cause.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Served:
    """A model before it is written.

    Attributes:
      endpoints: signature -> the function behind it and the specifications of its inputs.
      info: what `assets.extra/fct_tf.json` will say, without `format`.
      expected: (signature, inputs) -> outputs, computed by the models that this was made from:
        what the SavedModel is verified against. Outputs that it leaves out are not compared.
      tolerance: for that comparison, see `fct_tf.serving.verification`.
      files: further JSON files, path within the version -> content.
    """

    endpoints: dict[str, Endpoint]
    info: dict[str, Any]
    expected: Callable[[str, Tensors], dict[str, np.ndarray]]
    tolerance: float = TOLERANCE
    files: Mapping[str, Any] = field(default_factory=dict)

    @property
    def batched(self) -> bool:
        """Whether a server may join requests: all inputs are rows, of one length each."""
        return self.info["kind"] in infos.TRANSFORMS


def write(served: Served, directory: str | os.PathLike) -> None:
    """Writes the SavedModel and its description into an empty directory."""
    directory = Path(directory)
    info = {
        "format": infos.FORMAT,
        **served.info,
        "versions": {"tensorflow": tf.__version__, "keras": keras.__version__},
    }
    # Endpoints track the variables that they use; `track` as well would write each one twice.
    archive = keras.export.ExportArchive()
    for name, (function, specs) in {
        **served.endpoints,
        about.SIGNATURE: about.endpoint(info),
    }.items():
        archive.add_endpoint(name, function, input_signature=specs)
    archive.write_out(str(directory), verbose=False)
    write_json(directory / infos.INFO, info)
    for name, content in served.files.items():
        write_json(directory / name, content)


def normalized(embedding: tf.Tensor, unit_length: bool) -> tf.Tensor:
    """An embedding as a signature returns it: float32, at length 1 where the space has that."""
    embedding = tf.cast(embedding, tf.float32)
    return tf.math.l2_normalize(embedding, axis=-1) if unit_length else embedding
