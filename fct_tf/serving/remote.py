"""A transformation behind a model server, in place of a SavedModel on this machine."""

import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from fct_tf.common.errors import InputError
from fct_tf.models import about
from fct_tf.serving.client import DEFAULT, Client, connect


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

    def __call__(
        self, source_embedding: np.ndarray, side_info: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """As `fct_tf.serving.client.Client.transform`."""
        return self._client.transform(source_embedding, side_info)

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
        if info["kind"] != "transformation":
            raise InputError(
                f"{where}: a model of kind {info['kind']!r}, a transformation is needed"
            )
        signature = metadata.signatures[DEFAULT]
        specs = {**signature.inputs, "embedding": signature.outputs["embedding"]}
        dims = {name: (spec.shape or (0,))[-1] or 0 for name, spec in specs.items()}
        has_log_variance = "log_variance" in signature.outputs
    except BaseException:
        pinned.close()
        raise
    return ServedTransformation(where, info, dims, has_log_variance, pinned)
