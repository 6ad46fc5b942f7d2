"""Versions of served models: written beside where a server looks, checked, then moved there.

`<base>/<version>/` has what TF Serving loads, and what a deployment needs:

saved_model.pb, variables/                     the SavedModel
assets.extra/fct_tf.json                       its description
assets.extra/tf_serving_warmup_requests        see `fct_tf.serving.warmup`
batching_params.pbtxt                          of transformations only: a server with
                                               --enable_per_model_batching_parameters joins
                                               requests of models that have it, and of no others
model.json                                     the description, the signatures, the fingerprint of
                                               the files, the warm-up and the verification

A server takes a version up as soon as a directory with its number appears. So on a disk the whole
directory is renamed, and in an object store `saved_model.pb` is written last.
"""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import logging

from fct_tf.common import copies, files, leases, objects, stores
from fct_tf.common.errors import InputError
from fct_tf.models import info as infos
from fct_tf.models import signatures
from fct_tf.models.signatures import Served
from fct_tf.serving import warmup

MODEL = "model.json"
BATCHING = "batching_params.pbtxt"
# The highest version that there ever was: a number is not used again for something else.
_HIGHEST = ".highest_version"
# Requests of more rows are refused by the server, and split by the client.
MAX_BATCH_SIZE = 128


def publish(
    served: Served,
    base: str | os.PathLike,
    *,
    version: int = 0,
    overwrite: bool = False,
    batch_sizes: Sequence[int] = warmup.BATCH_SIZES,
    source: warmup.Source = warmup.GENERATED,
    verify: bool = True,
    tolerance: float = 0.0,
    check: Callable[[Path], dict[str, Any]] | None = None,
) -> str:
    """Writes a model as the next version, or as the one that is named.

    Args:
      served: the model.
      base: its directory, with the versions in it; or a URI of an object store (`s3://..`).
      version: 0 for the next one. It must be higher than all that are there.
      overwrite: replace the version named. A server that has loaded it keeps what it has.
      batch_sizes: of the warm-up requests; empty for a version without them.
      source: what the requests are made of.
      verify: compare the SavedModel's answers with the model's; see `verification`.
      tolerance: the largest error of a row that is accepted; 0 for the model's own.
      check: called with the staging directory before it is published; what it returns goes into
        `model.json` as `accuracy`, and an error keeps the version from being published.

    Returns:
      The path of the version.

    Raises:
      InputError: an existing or too low version, or one that does not pass; nothing is published.
    """
    store = _open(base)
    store.check(version, overwrite)
    model = str(base).rstrip("/").rpartition("/")[2]
    try:
        from fct_tf.serving import verification
    except ImportError as error:
        raise InputError(
            f"publishing needs the extra serving ({error.name} is missing): "
            "pip install 'fct_tf[serving]'"
        ) from None
    with store.staging() as directory:
        signatures.write(served, directory)
        record: dict[str, Any] = {"warmup": None, "verified": None}
        sizes = list(dict.fromkeys(batch_sizes))
        pools = warmup.pool(served, source, max(sizes, default=MAX_BATCH_SIZE))
        requests = list(warmup.requests(pools, sizes or warmup.BATCH_SIZES))
        if sizes:
            warmup.write(directory, model, requests)
            record["warmup"] = {
                "requests": len(requests),
                "batch_sizes": sizes,
                "source": source.name,
            }
        if served.batched:
            (directory / BATCHING).write_text(_batching(max([*sizes, MAX_BATCH_SIZE])))
        if verify:
            limit = tolerance or served.tolerance
            verified = verification.verify(directory, served, pools, requests, limit)
            record["verified"] = verified
            logging.info(
                "%s: %d rows in %d requests, the largest error of a row is %.2g of its length "
                "(%g is accepted)",
                *(
                    model,
                    verified["rows"],
                    verified["requests"],
                    verified["largest_row_error"],
                    limit,
                ),
            )
        if check:
            record["accuracy"] = check(directory)
        _describe(directory, record)
        path = store.move(directory, version, overwrite)
    logging.info("%s: published", path)
    return path


def _batching(max_batch_size: int) -> str:
    """`BatchingParameters` of a transformation; threads are the server's, in its own file."""
    return (
        "# Requests are joined up to so many rows; more rows in one request are refused.\n"
        f"max_batch_size {{ value: {max_batch_size} }}\n"
        "# About one execution: longer waits only add latency.\n"
        "batch_timeout_micros { value: 1000 }\n"
        "# Beyond it the server answers UNAVAILABLE, which clients may try elsewhere.\n"
        "max_enqueued_batches { value: 64 }\n"
    )


def _describe(directory: Path, record: dict[str, Any]) -> None:
    """Writes `model.json`; the last of the files, as it has the others' fingerprint."""
    from tensorflow.core.protobuf import saved_model_pb2
    from tensorflow.dtypes import as_dtype

    proto = saved_model_pb2.SavedModel.FromString((directory / "saved_model.pb").read_bytes())

    def tensors(of: Any) -> dict[str, Any]:
        return {
            name: {
                "dtype": as_dtype(tensor.dtype).name,
                "shape": [None if dim.size < 0 else dim.size for dim in tensor.tensor_shape.dim],
            }
            for name, tensor in sorted(of.items())
        }

    definitions = {
        name: {"inputs": tensors(of.inputs), "outputs": tensors(of.outputs)}
        for name, of in sorted(proto.meta_graphs[0].signature_def.items())
        if not name.startswith("__")
    }
    sums = {}
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        with open(path, "rb") as file:
            name = path.relative_to(directory).as_posix()
            sums[name] = hashlib.file_digest(file, "sha256").hexdigest()
    files.write_json(
        directory / MODEL,
        {
            **infos.read_info(directory),
            "signatures": definitions,
            "fingerprint": files.sha256_json(sums),
            "sha256": sums,
            **record,
        },
    )


def _open(base: str | os.PathLike) -> "_Disk | _ObjectStore":
    base = stores.local_form(base)
    if not base.strip("/"):
        raise InputError("``output`` is empty; name the model's base directory")
    stores.check_path(base)
    return _ObjectStore(base) if stores.in_store(base) else _Disk(Path(base))


def _check(base: str, there: list[int], highest: int, version: int, overwrite: bool) -> None:
    """Refuses a version that is there, or that would not be the highest."""
    if version < 0:
        raise InputError(f"``version={version}``: versions are positive numbers, 0 is the next one")
    if version >= 1 << 63:
        raise InputError(f"``version={version}``: TF Serving counts up to 2^63 - 1")
    if version in there:
        if not overwrite:
            raise InputError(
                f"{base}/{version}: exists already; leave ``version`` out for the next one, or "
                "pass ``overwrite=True`` to replace it"
            )
    elif version and version <= highest:
        raise InputError(
            f"``version={version}``: {base} has had version {highest}, and versions only grow; "
            "leave ``version`` out for the next one"
        )


class _Disk:
    """Versions in a directory."""

    def __init__(self, base: Path):
        self._base = base

    def _there(self) -> tuple[list[int], int]:
        """The versions that are there, and the highest that ever was."""
        names = os.listdir(self._base) if self._base.is_dir() else []
        existing = [int(name) for name in names if name.isascii() and name.isdecimal()]
        marked = 0
        if _HIGHEST in names:
            text = (self._base / _HIGHEST).read_text().strip()
            marked = int(text) if text.isdecimal() else 0
        return existing, max([*existing, marked], default=0)

    def check(self, version: int, overwrite: bool) -> None:
        _check(str(self._base), *self._there(), version, overwrite)

    def staging(self) -> contextlib.AbstractContextManager[Path]:
        files.make_dir(self._base)
        return files.staging_dir(self._base / "version")

    def move(self, directory: Path, version: int, overwrite: bool) -> str:
        while True:
            existing, highest = self._there()
            number = version or highest + 1
            try:
                _check(str(self._base), existing, highest, number, overwrite)
                files.move_dir(directory, self._base / str(number), overwrite)
            except InputError:
                if version:
                    raise
                continue  # Another process has just taken that number.
            files.atomic_write_text(self._base / _HIGHEST, f"{max(highest, number)}\n")
            return str(self._base / str(number))


class _ObjectStore:
    """Versions under a prefix of an object store."""

    def __init__(self, base: str):
        self._base = base.rstrip("/")

    def _there(self) -> list[int]:
        names = objects.folders(self._base)
        return [int(name) for name in names if name.isascii() and name.isdecimal()]

    def check(self, version: int, overwrite: bool) -> None:
        existing = self._there()
        if version in existing:
            raise InputError(
                f"{self._base}/{version}: exists already, and in an object store a version is not "
                "replaced in one step; leave ``version`` out for the next one"
            )
        _check(self._base, existing, max(existing, default=0), version, overwrite)

    @contextlib.contextmanager
    def staging(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory() as directory:
            yield Path(directory)

    def move(self, directory: Path, version: int, overwrite: bool) -> str:
        # Two that publish at the same time would take the same number.
        with leases.held(f"{self._base}.lock", self._base) as lease:
            self.check(version, overwrite)
            number = version or max(self._there(), default=0) + 1
            try:
                # A server loads what has a saved_model.pb: the rest must be there by then.
                copies.put(directory, f"{self._base}/{number}", "saved_model.pb", lease)
            except InputError as error:
                raise InputError(
                    f"{self._base}/{number}: cannot be written ({error.marked}); it has no "
                    "saved_model.pb, delete it"
                ) from None
            return f"{self._base}/{number}"
