"""Transformations and query encoders behind a model server: NumPy in, NumPy out.

    with connect("grpc://models:8500/fct@stable", space=gallery_space) as client:
        embedding = client.transform(old_embedding, side_info)["embedding"]

    with connect("http://models:8501/encoder") as client:
        embedding = client.embed_encoded([jpeg_bytes, png_bytes])

Of a fused search `client.fuse(old_embedding, new_embedding)` makes queries.

Of gRPC and REST, gRPC is the faster by far. Neither needs TensorFlow here.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from fct_tf.common.errors import InputError
from fct_tf.models import about
from fct_tf.models import info as infos
from fct_tf.serving import remedies, retries
from fct_tf.serving.transport import (
    Address,
    Failure,
    Metadata,
    Model,
    Settings,
    Signature,
    TensorSpec,
    Transport,
)

T = TypeVar("T")

DEFAULT = "serving_default"
# So many swaps of versions may interrupt one call that is made of several requests.
SWAPS = 5


class ServerError(InputError):
    """A model server that does not do what is asked: one line with the remedy.

    Attributes:
      code: name of the gRPC status code, such as `NOT_FOUND`; REST's statuses are translated.
    """

    def __init__(self, message: str, code: str):
        super().__init__(message)
        self.code = code


def connect(
    server: str,
    *,
    timeout_s: float = Settings.timeout_s,
    max_batch_size: int = Settings.max_batch_size,
    in_flight: int = Settings.in_flight,
    space: str = "",
) -> "Client":
    """A client of one model. Nothing is sent before the first request.

    Args:
      server: `grpc://HOST:PORT/MODEL` or `http://HOST:PORT/MODEL`, `@LABEL` or `@VERSION` after
        it to have another than the highest version; `grpcs` and `https` for TLS.
      timeout_s: how long a call may take, with all its requests and their repetitions.
      max_batch_size: rows per request; a call with more of them makes several requests.
      in_flight: how many of these are under way at a time.
      space: the embedding space that answers must lie in; empty for any.

    Raises:
      InputError: `server` is no address, a number that is not positive.
    """
    for name, value in (
        ("timeout_s", timeout_s),
        ("max_batch_size", max_batch_size),
        ("in_flight", in_flight),
    ):
        if not value > 0:
            raise InputError(f"{name}={value}: must be positive")
    settings = Settings(timeout_s, max_batch_size, in_flight, space)
    return Client(Address.parse(server), settings)


class Client:
    """One model of a server; made by `connect`. Threads may share it.

    All methods raise `ServerError` where the server is down, too slow or refuses: no such model,
    version or label, other inputs than the model's, another space than the one that is expected.
    """

    def __init__(self, address: Address, settings: Settings):
        self.address = address
        self.settings = settings
        self._transport = _open(address)
        self._pool = ThreadPoolExecutor(settings.in_flight, thread_name_prefix="requests")
        self._metadata: Metadata | None = None
        self._infos: dict[int, dict[str, Any]] = {}  # By version, which never changes.

    def __reduce__(self):
        return Client, (self.address, self.settings)  # With connections of its own.

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Gives threads and connections back."""
        self._pool.shutdown()
        self._transport.close()

    def at(self, version: int) -> "Client":
        """Another client, of this version, with the same settings and connections of its own."""
        model = self.address.model.at(version)
        return Client(dataclasses.replace(self.address, model=model), self.settings)

    def transform(
        self, source_embedding: np.ndarray, side_info: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """Transforms rows.

        Args:
          source_embedding: float32 [n, d_source].
          side_info: float32 [n, d_side], where the transformation was trained with it.

        Returns:
          `embedding` float32 [n, d_target] and, where the model has it, `log_variance`
          float32 [n]. Of a fused search `embedding` is a row of it, float32 [n, d].

        Raises:
          InputError: a row is NaN or infinite; nothing is sent.
        """
        inputs = {"source_embedding": source_embedding}
        if side_info is not None:
            inputs["side_info"] = side_info
        return self.predict_rows(inputs)

    def fuse(self, source_embedding: np.ndarray, target_embedding: np.ndarray) -> np.ndarray:
        """Makes queries of a fused search.

        Args:
          source_embedding: float32 [n, d_source], of the old model.
          target_embedding: float32 [n, d_target], of the new model.

        Returns:
          float32 [n, d], to be compared with what `transform` makes of gallery rows.

        Raises:
          InputError: as `transform`.
        """
        both = {"source_embedding": source_embedding, "target_embedding": target_embedding}
        return self.predict_rows(both, infos.QUERY)["embedding"]

    def fuse_rows(self, source_embedding: np.ndarray, target_embedding: np.ndarray) -> np.ndarray:
        """Makes gallery rows of a fused search that the new model has embedded; as `fuse`."""
        both = {"source_embedding": source_embedding, "target_embedding": target_embedding}
        return self.predict_rows(both, infos.ROWS)["embedding"]

    def predict_rows(
        self, inputs: Mapping[str, np.ndarray], signature: str = DEFAULT
    ) -> dict[str, np.ndarray]:
        """As `predict`, of embeddings; `InputError` where a row is NaN or infinite."""
        for name, rows in inputs.items():
            rows = np.asarray(rows)
            if rows.dtype.kind == "f" and not np.isfinite(rows).all():
                finite = np.isfinite(rows.reshape(len(rows), -1)).all(axis=1)
                raise InputError(
                    f"{name}: row {np.flatnonzero(~finite)[0]} is NaN or infinite; leave it out"
                )
        return self.predict(inputs, signature)

    def embed(self, image: np.ndarray) -> np.ndarray:
        """Embeds images of one size: uint8 [n, h, w, 3] -> float32 [n, d]."""
        return self.predict({"image": image})["embedding"]

    def embed_encoded(self, image_bytes: Sequence[bytes]) -> np.ndarray:
        """Embeds n JPEG or PNG files of any sizes -> float32 [n, d]."""
        files = np.empty(len(image_bytes), object)
        files[:] = image_bytes
        return self.predict({"image_bytes": files}, "encoded")["embedding"]

    def predict(
        self, inputs: Mapping[str, np.ndarray], signature: str = DEFAULT
    ) -> dict[str, np.ndarray]:
        """Runs a signature over rows, all of them by the same version.

        Args:
          inputs: name -> array [n, ...]; numbers are cast where their kind fits (float64 to
            float32), strings are bytes or text.
          signature: which one.

        Returns:
          name -> array [n, ...], read-only where it comes from a single request.
        """
        deadline = retries.Deadline(self.settings.timeout_s)
        try:
            fitted_signature, arrays = self._fit(inputs, signature, deadline)
            return self._run(fitted_signature, signature, arrays, deadline)
        except Failure as failure:
            raise self._explained(failure, signature) from None

    def metadata(self) -> Metadata:
        """Which version the server means now, and its signatures."""
        deadline = retries.Deadline(self.settings.timeout_s)
        try:
            return self._fetch(deadline)
        except Failure as failure:
            raise self._explained(failure) from None

    def about(self) -> dict[str, Any]:
        """Name, spaces, distance and dimensions of the served version, as exported.

        Raises:
          ServerError: also where the version was exported without them.
        """
        deadline = retries.Deadline(self.settings.timeout_s)
        try:
            return self._about(self._fetch(deadline).version, deadline)
        except Failure as failure:
            raise self._explained(failure) from None

    def versions(self) -> dict[int, str]:
        """The versions that the server knows and their states, such as `AVAILABLE`."""
        deadline = retries.Deadline(self.settings.timeout_s)
        ask = functools.partial(self._transport.versions, self.address.model.name)
        try:
            return retries.until(deadline, ask)
        except Failure as failure:
            raise self._explained(failure) from None

    def _fetch(self, deadline: retries.Deadline) -> Metadata:
        ask = functools.partial(self._transport.metadata, self.address.model)
        self._metadata = self._until(deadline, self.address.model, ask)
        return self._metadata

    def _until(self, deadline: retries.Deadline, model: Model, call: Callable[[float], T]) -> T:
        """As `retries.until`; also waits for versions that the server is about to have.

        A server with several models or versions answers before it has loaded all of them.
        """

        def attempt(left_s: float) -> T:
            try:
                return call(left_s)
            except Failure as failure:
                if failure.code == "NOT_FOUND" and self._is_loading(model, failure.message):
                    raise Failure("UNAVAILABLE", failure.message) from None
                raise

        return retries.until(deadline, attempt)

    def _is_loading(self, model: Model, message: str) -> bool:
        """Whether what was not found is about to be there, or is so by now."""
        try:
            states = self._transport.versions(model.name, 5.0)
        except Failure:
            return False
        number = re.search(r"Specific\(.*, (\d+)\)", message)  # Also what a label stands for.
        named = [states.get(int(number[1]))] if number else states.values()
        return any(state in ("START", "LOADING", "AVAILABLE") for state in named)

    def _fit(
        self, inputs: Mapping[str, np.ndarray], name: str, deadline: retries.Deadline
    ) -> tuple[Signature, dict[str, np.ndarray]]:
        """The signature and the arrays as it takes them.

        A server that is asked for the wrong shape may fail with a line about matrices, or not at
        all. Signatures are remembered: they are asked for again where something does not fit.
        """
        metadata = self._metadata
        if metadata:
            try:
                return _fit(inputs, name, metadata)
            except ValueError:
                pass  # As it may be to another version since.
        try:
            return _fit(inputs, name, self._fetch(deadline))
        except ValueError as error:
            raise ServerError(f"{self.address}: {error}", "INVALID_ARGUMENT") from None

    def _run(
        self,
        signature: Signature,
        name: str,
        arrays: dict[str, np.ndarray],
        deadline: retries.Deadline,
    ) -> dict[str, np.ndarray]:
        count = len(next(iter(arrays.values())))
        if not count:
            return {key: _no_rows(spec) for key, spec in signature.outputs.items()}
        size = self.settings.max_batch_size
        parts = [
            {key: array[start : start + size] for key, array in arrays.items()}
            for start in range(0, count, size)
        ]
        # Requests by label or for the highest version may be answered by two of them. So their
        # version is asked for first, and they are sent again if it goes while they are under way.
        moves = self.address.model.version is None
        asks = len(parts) > 1 or (bool(self.settings.space) and not self._transport.tells_version)
        for swap in range(SWAPS + 1):
            model = self.address.model
            if moves and asks:
                model = model.at(self._fetch(deadline).version)
            send = functools.partial(self._send, model, name, signature, deadline)
            try:
                answers = [send(parts[0])] if len(parts) == 1 else self._send_all(send, parts)
                break
            except Failure as failure:
                gone = moves and failure.code == "NOT_FOUND" and (asks or self.settings.space)
                if not gone or swap == SWAPS:
                    raise
        if len(answers) == 1:
            return answers[0]
        return {key: np.concatenate([part[key] for part in answers]) for key in answers[0]}

    def _send_all(self, send, parts: list) -> list[dict[str, np.ndarray]]:
        futures = [self._pool.submit(send, part) for part in parts]
        try:
            return [future.result() for future in futures]
        finally:  # The first failure ends the call; what has not been sent is not sent.
            for future in futures:
                future.cancel()

    def _send(
        self,
        model: Model,
        name: str,
        signature: Signature,
        deadline: retries.Deadline,
        inputs: dict[str, np.ndarray],
    ) -> dict[str, np.ndarray]:
        def call(left_s: float):
            return self._transport.predict(model, name, signature, inputs, left_s)

        version, outputs = self._until(deadline, model, call)
        if self.settings.space and name != about.SIGNATURE:
            self._check_space(model.version if version is None else version, deadline)
        rows = len(next(iter(inputs.values())))
        for key, array in outputs.items():
            if array.ndim == 0 or len(array) != rows:
                raise Failure("INTERNAL", f"{key} of shape {array.shape} for {rows} rows")
        return outputs

    def _check_space(self, version: int | None, deadline: retries.Deadline) -> None:
        assert version is not None  # Asked for beforehand where the answer does not tell it.
        info = self._about(version, deadline)
        if info["space"] != self.settings.space:
            raise ServerError(
                f"{self.address}: version {version} ({info['name']}) writes space "
                f"{info['space']}, expected is {self.settings.space}; move the label, and the "
                "gallery with it, or connect to the model of that space",
                "FAILED_PRECONDITION",
            )

    def _about(self, version: int, deadline: retries.Deadline) -> dict[str, Any]:
        """The description of a version; asked for once."""
        cached = self._infos.get(version)
        if cached is not None:
            return cached
        model = self.address.model.at(version)
        signature = Signature({}, {about.OUTPUT: TensorSpec(np.dtype(object), (None,))})

        def call(left_s: float):
            return self._transport.predict(
                model, about.SIGNATURE, signature, about.question(), left_s
            )

        try:
            _, reply = self._until(deadline, model, call)
        except Failure as failure:
            if about.SIGNATURE not in failure.message or "ignature" not in failure.message:
                raise
            raise ServerError(
                f"{self.address}: version {version} does not say which space it writes (it has no "
                f"signature {about.SIGNATURE!r}); export it again with export_serving",
                "FAILED_PRECONDITION",
            ) from None
        info = about.read(reply, f"{self.address}: version {version}")
        self._infos[version] = info
        return info

    def _explained(self, failure: Failure, signature: str = "") -> ServerError:
        ask = functools.partial(self._transport.versions, self.address.model.name, 5.0)
        line = remedies.explain(failure, self.address, self.settings, signature, ask)
        return ServerError(line, failure.code)


def _open(address: Address) -> Transport:
    if address.scheme.startswith("grpc"):
        from fct_tf.serving.grpc_client import GrpcTransport

        return GrpcTransport(address)
    from fct_tf.serving.rest_client import RestTransport

    return RestTransport(address)


def _fit(
    inputs: Mapping[str, np.ndarray], name: str, metadata: Metadata
) -> tuple[Signature, dict[str, np.ndarray]]:
    signature = metadata.signatures.get(name)
    where = f"version {metadata.version}"
    if signature is None:
        names = ", ".join(sorted(metadata.signatures))
        raise ValueError(f"{where} has no signature {name!r}; it has {names}")
    if set(inputs) != set(signature.inputs):
        expected = ", ".join(f"{key}: {spec}" for key, spec in sorted(signature.inputs.items()))
        sent = ", ".join(sorted(inputs)) or "nothing"
        raise ValueError(f"{where} takes {expected} ({name}), but was given {sent}")
    arrays = {}
    for key, value in inputs.items():
        spec = signature.inputs[key]
        array = np.asarray(value)
        texts = array.dtype.kind in "USO"
        castable = texts if spec.dtype == object else np.can_cast(array.dtype, spec.dtype, _CAST)
        if not castable or not spec.admits(array.shape) or not array.ndim:
            given = f"{'string' if texts else array.dtype} {list(array.shape)}"
            raise ValueError(
                f"{key} is {given}, but {where} takes {spec}; is it the model that these rows are "
                "for?"
            )
        arrays[key] = array if texts else array.astype(spec.dtype, copy=False)
    counts = {key: len(array) for key, array in arrays.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{key}: {count}" for key, count in counts.items())
        raise ValueError(f"inputs of different numbers of rows ({listed}); send as many of each")
    return signature, arrays


_CAST: Any = "same_kind"


def _no_rows(spec) -> np.ndarray:
    shape = spec.shape or (0,)
    return np.empty([0, *(size or 0 for size in shape[1:])], spec.dtype)
