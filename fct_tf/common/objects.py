"""Files in an object store: read, listed, written whole, and written only if nobody else has.

All but galleries, which Lance opens. `obstore` does it, by the same options as Lance's and with the
same stores (S3 and what speaks like it, Google Cloud Storage, Azure). Each function takes the
file's URI and raises `InputError` where the store cannot be opened; see `fct_tf.common.stores`.
"""

import contextlib
import datetime
import functools
import importlib.util
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fct_tf.common import store_errors, stores
from fct_tf.common.errors import InputError
from fct_tf.common.files import atomic_write_text, one_line
from fct_tf.common.store_options import CLIENT, OF_STORE, RETRIES, RETRY

# Of the first request to a store, which has nothing to carry: what answers, does so in this time.
_FIRST = {"connect_timeout": "5s", "timeout": "8s", "client_max_retries": "1"}
# How the library calls it when nobody has answered; of a machine's own metadata nobody has to.
_SILENT = re.compile(r"kind: Timeout|TimedOut|timed out")
_METADATA = re.compile(r"169\.254\.\d+\.\d+|metadata\.google")


@dataclass(frozen=True)
class Object:
    """A file of a store. version: changes whenever the content does."""

    size: int
    modified: datetime.datetime
    version: str


def reaches(uri: str | os.PathLike) -> bool:
    """Whether files of a store of this kind can be opened here; Lance knows some more kinds."""
    return os.fspath(uri).partition("://")[0] in OF_STORE


def lance_options(uri: str | os.PathLike) -> dict[str, str] | None:
    """What Lance shall open `uri` with; None on a disk.

    Raises:
      InputError: as `stores.options`, and where the store does not answer.
    """
    given = stores.options(uri)
    if not stores.in_store(uri):
        return None
    stores.check_path(uri)
    if reaches(uri) and importlib.util.find_spec("obstore"):
        _store(stores.place_of(os.fspath(uri)), given or {})
    variables = {name.lower() for name in os.environ}
    defaults = {name: value for name, value in RETRY.items() if name not in variables}
    return defaults | (given or {})


def read(uri: str) -> bytes:
    """The content; `FileNotFoundError` where there is no such file."""
    with _telling(uri) as (obstore, store, path):
        return bytes(obstore.get(store, path).bytes())


def download(uri: str, path: Path) -> None:
    """Writes the content to a file on the disk."""
    with _telling(uri) as (obstore, store, key), open(path, "wb") as file:
        for block in obstore.get(store, key).stream(min_chunk_size=1 << 24):
            file.write(block)


def read_version(uri: str) -> tuple[bytes, Object] | None:
    """The content and what is known of it; None where there is no such file."""
    try:
        with _telling(uri) as (obstore, store, path):
            response = obstore.get(store, path)
            return bytes(response.bytes()), _object(response.meta)
    except FileNotFoundError:
        return None


def write(uri: str, content: bytes | Path) -> None:
    """Writes a file, whole or not at all, over what is there."""
    stores.check_path(uri)
    with _telling(uri) as (obstore, store, path):
        obstore.put(store, path, content)


def create(uri: str, content: bytes) -> str | None:
    """Writes a file that is not there yet; its version, or None where it is there."""
    stores.check_path(uri)
    with _telling(uri) as (obstore, store, path):
        try:
            return _version(obstore.put(store, path, content, mode="create"))
        except (obstore.exceptions.AlreadyExistsError, obstore.exceptions.PreconditionError):
            return None


def replace(uri: str, content: bytes, version: str) -> str | None:
    """Writes a file that is still of this version; its new one, or None where others came first."""
    with _telling(uri) as (obstore, store, path):
        try:
            mode = {"e_tag": version}
            return _version(obstore.put(store, path, content, mode=mode))
        except (obstore.exceptions.PreconditionError, FileNotFoundError):
            return None


def listed(uri: str) -> dict[str, Object]:
    """All files below a URI, by their paths from there, in order."""
    with _telling(uri) as (obstore, store, path):
        prefix = f"{path}/" if path else ""
        entries = obstore.list(store, prefix or None).collect()
        return {one["path"].removeprefix(prefix): _object(one) for one in sorted_by_path(entries)}


def sorted_by_path(found: list[Any]) -> list[Any]:
    """Stores list in orders of their own."""
    return sorted(found, key=lambda one: one["path"])


def folders(uri: str) -> list[str]:
    """The names of what looks like directories right below a URI."""
    with _telling(uri) as (obstore, store, path):
        listing = obstore.list_with_delimiter(store, f"{path}/" if path else None)
        return sorted(one.rpartition("/")[2] for one in listing["common_prefixes"])


def about(uri: str) -> Object | None:
    """What is known of a file; None where there is none."""
    try:
        with _telling(uri) as (obstore, store, path):
            return _object(obstore.head(store, path))
    except FileNotFoundError:
        return None


def exists(uri: str) -> bool:
    """Whether there is a file, or some below it."""
    return about(uri) is not None or bool(listed(uri))


def remove(uri: str) -> None:
    """Removes a file, and all below it."""
    names = [uri, *(f"{uri}/{name}" for name in listed(uri))]
    for name in names:
        with _telling(name) as (obstore, store, path), contextlib.suppress(FileNotFoundError):
            obstore.delete(store, path)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a text file whole or not at all, in a store or on the disk."""
    if stores.in_store(path):
        write(os.fspath(path), text.encode())
    else:
        atomic_write_text(path, text)


@contextlib.contextmanager
def _telling(uri: str) -> Iterator[tuple[Any, Any, str]]:
    """The library, the store and the path in it; what goes wrong becomes one line."""
    try:
        import obstore
    except ImportError:
        raise InputError(
            f"{uri}: files in an object store need the extra stores: pip install 'fct_tf[stores]'"
        ) from None
    place = stores.place_of(uri)
    given = stores.options(uri) or {}
    try:
        yield obstore, _store(place, given), uri[len(place) :].strip("/")
    except (obstore.exceptions.BaseError, OSError) as error:
        explanation = store_errors.explained(error, uri)
        if explanation is None and isinstance(error, FileNotFoundError):
            raise
        raise explanation or InputError(stores.masked(f"{uri}: {_first(error)}")) from None


def _first(error: Exception) -> str:
    return one_line(str(error).partition("\n\n")[0])[:300]


def _store(place: str, given: dict[str, str]) -> Any:
    # As long as nothing else is told, it is opened once, and keeps its connections.
    return _open(place, *(tuple(sorted(one.items())) for one in (given, stores.environment())))


@functools.lru_cache(maxsize=32)
def _open(
    place: str, given: tuple[tuple[str, str], ...], environment: tuple[tuple[str, str], ...]
) -> Any:
    connection = {
        name.lower().removeprefix("aws_"): value
        for name, value in environment
        if name.startswith("AWS_") and name.lower().removeprefix("aws_") in CLIENT | RETRIES
    }
    config = connection | dict(given)
    _ask_first(place, config)
    return _make(place, RETRY | config)


def _make(place: str, told: dict[str, str]) -> Any:
    from obstore.store import from_url

    make: Any = from_url  # Which of its overloads, the URI decides.
    # One file may have the options of several stores.
    own = OF_STORE.get(place.partition("://")[0], frozenset())
    config = {name: value for name, value in told.items() if name in own}
    client = {name: value for name, value in told.items() if name in CLIENT}
    retry: dict[str, Any] = {"max_retries": int(told["client_max_retries"])}
    if "client_retry_timeout" in told:
        retry["retry_timeout"] = datetime.timedelta(seconds=int(told["client_retry_timeout"]))
    more = {"credential_provider": _profile()} if _wants_profile(place, config) else {}
    return make(place, config=config, client_options=client, retry_config=retry, **more)


def _ask_first(place: str, told: dict[str, str]) -> None:
    """Refuses a store that takes connections, or nothing at all, and never answers.

    Later requests carry much, for which there has to be time: one of them would be waited for, and
    made anew, for minutes. All other answers are those of the work itself to tell.
    """
    import obstore

    # Not `timeout`, which is that of large requests.
    patience = told.get("connect_timeout")
    limits = {"connect_timeout": patience, "timeout": patience} if patience else {}
    began = time.monotonic()
    try:
        obstore.head(_make(place, told | _FIRST | limits), ".answers")
    except Exception as error:
        text = str(error)
        if _SILENT.search(text) and not _METADATA.search(text):
            raise store_errors.silent(place, text, time.monotonic() - began) from None


def _wants_profile(place: str, config: dict[str, str]) -> bool:
    """Whether credentials can only come from ~/.aws, which Lance reads and obstore does not."""
    names = {*config, *map(str.lower, os.environ)}
    if not place.startswith("s3://") or any("access_key_id" in name for name in names):
        return False
    shared = os.environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials")
    return "AWS_PROFILE" in os.environ or Path(shared).expanduser().is_file()


def _profile() -> Any:
    try:
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:
        raise InputError(
            "credentials of a profile (AWS_PROFILE, ~/.aws) are read by boto3: pip install boto3, "
            "or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        ) from None
    return Boto3CredentialProvider()


def _object(found: Any) -> Object:
    return Object(found["size"], found["last_modified"], _version(found))


def _version(found: Any) -> str:
    return found["e_tag"] or found.get("version") or ""
