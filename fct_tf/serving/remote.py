"""A transformation behind a model server, in place of a SavedModel on this machine."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fct_tf.common.errors import InputError
from fct_tf.models import about
from fct_tf.models import info as infos
from fct_tf.serving.client import DEFAULT, Client, connect
from fct_tf.serving.transport import Signature


@dataclass(frozen=True)
class ServedTransformation:
    """Runs one version of a served transformation, whatever is published meanwhile.

    Attributes: as of `fct_tf.upgrade.inputs.Transformation`.
    """

    path: str
    info: dict[str, Any]
    dims: dict[str, int]
    has_log_variance: bool
    _client: Client
    _signatures: Mapping[str, Signature]
    _name: str = DEFAULT

    def __call__(self, *inputs: np.ndarray) -> dict[str, np.ndarray]:
        """As of `fct_tf.upgrade.inputs.Transformation`."""
        return self._client.predict_rows(dict(zip(self.dims, inputs, strict=False)), self._name)

    @property
    def fuse(self) -> Callable[[np.ndarray, np.ndarray], np.ndarray] | None:
        """Makes rows of both models' embeddings; None of what is no fused search."""
        if infos.ROWS not in self._signatures:
            return None
        return self._client.fuse_rows

    def query_side(self) -> "ServedTransformation":
        """What makes the queries of a fused search; `InputError` where this is none."""
        infos.check_fused(self.info, self.path)
        dims = infos.dims_of(self._signatures[infos.QUERY].inputs, self.dims["embedding"])
        return dataclasses.replace(self, dims=dims, has_log_variance=False, _name=infos.QUERY)

    def close(self) -> None:
        """Gives the connection back."""
        self._client.close()


def open_transformation(
    server: str, description: str | os.PathLike = "", **settings
) -> ServedTransformation:
    """The transformation that a server has.

    Its version is settled here: rows of one job come from one version, also where a label moves.

    Args:
      server: see `fct_tf.serving.client.connect`.
      description: the SavedModel that is served, where versions were exported before they could
        say what they are; empty to ask the server.
      settings: see `fct_tf.serving.client.connect`.

    Raises:
      InputError: the server is down or has no such model, version or label; it serves something
        else than a transformation, or another one than `description`.
    """
    with connect(server, **settings) as client:
        metadata = client.metadata()
        pinned = client.at(metadata.version)
    try:
        where = str(pinned.address)
        if description:
            from fct_tf.models import saved_model

            directory = saved_model.locate(description)
            info = saved_model.read_info(directory)
            if about.SIGNATURE in metadata.signatures and pinned.about()["space"] != info["space"]:
                served = pinned.about()
                raise InputError(
                    f"{where}: serves {served['name']} of space {served['space']}, but {directory} "
                    f"is {info['name']} of space {info['space']}; name the one that is meant"
                )
        else:
            info = pinned.about()
        if info["kind"] not in infos.TRANSFORMS:
            raise InputError(
                f"{where}: a model of kind {info['kind']!r}, a transformation is needed"
            )
        signature = metadata.signatures[DEFAULT]
        dim = (signature.outputs["embedding"].shape or (0,))[-1] or 0
        dims = infos.dims_of(signature.inputs, dim)
        has_log_variance = "log_variance" in signature.outputs
    except BaseException:
        pinned.close()
        raise
    return ServedTransformation(where, info, dims, has_log_variance, pinned, metadata.signatures)
