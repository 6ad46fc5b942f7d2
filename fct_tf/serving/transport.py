"""What a client sends to a model server and gets back, whether by gRPC or by REST."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Protocol
from urllib.parse import unquote, urlsplit

import numpy as np

from fct_tf.common.errors import InputError

Arrays = Mapping[str, np.ndarray]
_DEFAULT_PORTS = {"grpc": 8500, "grpcs": 8500, "http": 8501, "https": 8501}


class Failure(Exception):
    """A request that was not answered with a result.

    Attributes:
      code: name of a gRPC status code, such as `UNAVAILABLE`.
      message: the server's text, or what came in its place.
    """

    def __init__(self, code: str, message: str):
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


@dataclasses.dataclass(frozen=True)
class Model:
    """The version of a model that is meant: by number, by label, or (neither) the highest."""

    name: str
    version: int | None = None
    label: str = ""

    def __str__(self) -> str:
        return f"{self.name}@{self.label or self.version}" if self._narrowed() else self.name

    def _narrowed(self) -> bool:
        return bool(self.label) or self.version is not None

    def at(self, version: int) -> "Model":
        """This model at a version."""
        return Model(self.name, version)


@dataclasses.dataclass(frozen=True)
class Address:
    """Where a model is served.

    Attributes:
      scheme: `grpc` or `http`, with an `s` at the end for TLS.
      host: name or number, IPv6 in brackets.
      port: by default TF Serving's, 8500 for gRPC and 8501 for REST.
      model: which one there.
    """

    scheme: str
    host: str
    port: int
    model: Model

    def __str__(self) -> str:
        return f"{self.scheme}://{self.host}:{self.port}/{self.model}"

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Reads `grpc://HOST:PORT/MODEL`, with `@LABEL` or `@VERSION` at its end if wanted.

        Raises:
          InputError: it is not of that form.
        """
        match = re.fullmatch(r"(\w+)://([^/]+)/([^/@]+)(?:@([^/@]+))?/?", text)
        if not match or match[1] not in _DEFAULT_PORTS:
            raise InputError(
                f"server {text!r}: not an address; write grpc://HOST:8500/MODEL or "
                "http://HOST:8501/MODEL, with @LABEL or @VERSION at its end if wanted"
            )
        parts = urlsplit(f"{match[1]}://{match[2]}")
        try:
            port = parts.port or _DEFAULT_PORTS[match[1]]
        except ValueError:
            raise InputError(f"server {text!r}: the port is not a number up to 65535") from None
        if not parts.hostname or parts.username is not None:
            raise InputError(f"server {text!r}: no host's name; write {match[1]}://HOST:{port}/...")
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        chosen = match[4] or ""
        version = int(chosen) if chosen.isdecimal() else None
        label = "" if version is not None else unquote(chosen)
        return cls(match[1], host, port, Model(unquote(match[3]), version, label))


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a client calls.

    Attributes:
      timeout_s: how long a call may take, with all its requests and their repetitions.
      max_batch_size: rows per request; by default as in the batching configuration, since a
        server refuses requests of more.
      in_flight: requests of one client that are under way at a time; by default two for each of a
        small server's cores: one is computed while another is on its way.
      space: the embedding space that answers must lie in; empty for any.
    """

    timeout_s: float = 30.0
    max_batch_size: int = 128
    in_flight: int = 4
    space: str = ""


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """dtype (object for strings) and shape of an input or output; None for what is open."""

    dtype: np.dtype
    shape: tuple[int | None, ...] | None

    def __str__(self) -> str:
        shape = "of any shape"
        if self.shape is not None:
            shape = "[" + ", ".join("?" if n is None else str(n) for n in self.shape) + "]"
        return f"{'string' if self.dtype == object else self.dtype} {shape}"

    def admits(self, shape: tuple[int, ...]) -> bool:
        """Whether an array of that shape fits."""
        return self.shape is None or (
            len(shape) == len(self.shape)
            and all(n in (None, m) for n, m in zip(self.shape, shape, strict=True))
        )


@dataclasses.dataclass(frozen=True)
class Signature:
    """Inputs and outputs, by name."""

    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]


@dataclasses.dataclass(frozen=True)
class Metadata:
    """Which version answers, and its signatures by name."""

    version: int
    signatures: dict[str, Signature]


class Transport(Protocol):
    """gRPC or REST. All calls raise `Failure`, and take seconds that they may last."""

    tells_version: bool  # Whether `predict` returns the version that answered.

    def predict(
        self, model: Model, name: str, signature: Signature, inputs: Arrays, timeout_s: float
    ) -> tuple[int | None, dict[str, np.ndarray]]:
        """The version that answered, where it is known, and the outputs."""
        ...

    def metadata(self, model: Model, timeout_s: float) -> Metadata:
        """Signatures of the version that the model means now."""
        ...

    def versions(self, name: str, timeout_s: float) -> dict[int, str]:
        """The model's versions and their states, such as `AVAILABLE`."""
        ...

    def close(self) -> None:
        """Gives connections back."""
        ...
