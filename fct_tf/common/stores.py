"""Object stores: which paths lie in one, the options that open them, and what goes wrong there.

A path with `://` (`s3://bucket/photos.lance`) lies in a store. Galleries are opened there by Lance,
all other files by `fct_tf.common.objects`; both take the same options, by the names that Lance has
for them (`aws_endpoint`, `aws_access_key_id`, `allow_http`, ..), and both read what the environment
has (`AWS_ACCESS_KEY_ID`, ..) where no option says otherwise. Options hold secrets: they are kept
here and nowhere else, go to workers with what these are to do, and are struck out of messages.
"""

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from fct_tf.common import files, store_options
from fct_tf.common.errors import InputError

# Names a file with options, for all stores, where none are given.
OPTIONS_FILE = "FCT_TF_STORAGE_OPTIONS"
# What the libraries read from the environment.
_ENVIRONMENT = ("AWS_", "GOOGLE_", "AZURE_")
_SECRET = re.compile(r"secret|token|password|key|sas|credential", re.IGNORECASE)
_SHORTEST_SECRET = 8  # Characters. Shorter ones would strike out words.
_SCHEMES = r"(?:s3a?|gs|az|azure|adl|abfss?)"
# A secret may have a slash in it; names of buckets have no colon.
_IN_PATH = re.compile(rf"(\b{_SCHEMES}://)[^/@\s]*:[^@\s]*(?=@)|(://)[^/@\s]*:[^/@\s]*(?=@)")
_ONE_SLASH = re.compile(rf"({_SCHEMES}):/(?!/)")
# What ends a path in a URL, or stands for other letters in it.
_OF_URLS = re.compile(r"[#?%]")
_ENDPOINT = re.compile(r"https?://[^/\s]+(/\S*)?")
_ENDPOINTS = ("aws_endpoint", "aws_endpoint_url", "endpoint", "endpoint_url")
# An address, wherever in a text: folder:s3://bucket/photos.
_ADDRESS_OF_STORE = re.compile(rf"\b{_SCHEMES}://([^/]*)(.*)", re.DOTALL)
# Signatures in addresses, which come from secrets and open what these do.
_SIGNED = re.compile(r"([?&](?:sig|se|sp|sv|X-Amz-\w+|X-Goog-\w+)=)[^&\s\"')]+", re.IGNORECASE)
# Options in place of the name of their file.
_OPTIONS = re.compile(r"""[{"\n]|(secret|token|key|access_key_id|endpoint|region)['"]?\s*[=:,]""")

# Options by place: those of a bucket (`s3://bucket`), and of all others ("").
_given: dict[str, dict[str, str]] = {}


def in_store(path: str | os.PathLike) -> bool:
    """Whether a path lies in an object store, and not on this machine's disks.

    Raises:
      InputError: it would, if a slash were not missing.
    """
    text = local_form(path)
    if match := _ONE_SLASH.match(text):
        raise InputError(
            f"{text}: write {match[1]}://, and as a text: pathlib takes one of the slashes away"
        )
    return "://" in text


def local_form(path: str | os.PathLike) -> str:
    """The path, of a file:// URI its path on the disk."""
    return os.fspath(path).removeprefix("file://")


def place_of(uri: str) -> str:
    """The bucket of a URI, `s3://bucket`."""
    scheme, _, rest = uri.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}"


def use(given: Mapping[str, Any] | str | os.PathLike, uri: str | os.PathLike = "") -> None:
    """Opens stores with these options from now on, in this process and its workers.

    Args:
      given: the options, or the path of a JSON file of them. Values are texts, numbers or true
        and false.
      uri: for the bucket that this lies in; empty for all that have no options of their own.

    Raises:
      InputError: no such file, or no options in it; the options themselves in place of a path.
    """
    place = place_of(os.fspath(uri)) if uri else ""
    _given[place] = _read(given)


def options(uri: str | os.PathLike) -> dict[str, str] | None:
    """What Lance shall open `uri` with; None on a disk, and where the environment alone tells.

    Raises:
      InputError: the path has credentials in it, or letters that a URL has for other things.
    """
    text = os.fspath(uri)
    if not in_store(text):
        return None
    place = _checked_place(text)
    _use_named()
    config = _given.get(place, _given.get(""))
    for one in (config or {}, {name.lower(): value for name, value in environment().items()}):
        for name in _ENDPOINTS:
            if name in one and not _ENDPOINT.fullmatch(one[name]):
                raise InputError(
                    f"{name}={_shown(one[name])}: is no address; write http://HOST:PORT or "
                    "https://HOST"
                )
    return dict(config) if config else None


def _shown(value: str) -> str:
    """What was written for an address, unless it may be a secret in the wrong place."""
    harmless = "@" not in value and (len(value) <= 16 or "." in value or "://" in value)
    return value if harmless else "***"


def check_path(address: str | os.PathLike) -> None:
    """Refuses an address that is of no file in a bucket: `s3://`, `s3:///x`, `s3://bucket`.

    A version or a tag behind it, `@7`, is none either. What is on a disk is well.

    Raises:
      InputError: such an address; credentials in it.
    """
    match = _ADDRESS_OF_STORE.search(os.fspath(address))
    if not match:
        return
    place = _checked_place(match[0])
    if not match[2].partition("@")[0].strip("/"):
        # Of Azure, container@account is a name.
        name = place if place.startswith("a") else place.partition("@")[0]
        raise InputError(f"{match[0]}: is a bucket; name a path in the bucket, {name}/NAME")


def _use_named() -> None:
    """Reads the file that the environment names."""
    named = os.environ.get(OPTIONS_FILE)
    if named and "" not in _given:
        use(named)


def _checked_place(text: str) -> str:
    """The bucket of an address that one can be."""
    place = place_of(text)
    scheme, _, bucket = place.partition("://")
    if ":" in bucket or _IN_PATH.search(text):
        masked_text = masked(text) if _IN_PATH.search(text) else f"{scheme}://***"
        raise InputError(
            f"{masked_text}: has credentials in the path, which is written down in many places; "
            "name a file of them with ``storage_options``, or set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY"
        )
    if odd := _OF_URLS.search(text):
        raise InputError(
            f"{text}: has {odd[0]!r} in the path, which a store may read as another path; choose "
            "another name"
        )
    if not bucket.partition("@")[0] and scheme in store_options.OF_STORE:
        raise InputError(f"{text}: names no bucket; write {scheme}://BUCKET/NAME")
    return place


def _read(given: Mapping[str, Any] | str | os.PathLike) -> dict[str, str]:
    where = "``storage_options``"
    if not isinstance(given, Mapping):
        if not isinstance(given, str | os.PathLike) or not os.fspath(given):
            raise InputError(
                "``storage_options``: must be a dict or the name of a JSON file, not "
                + ("nothing" if given == "" else type(given).__name__)
            )
        where = os.fspath(given)
        if _OPTIONS.search(where):
            raise InputError(
                "``storage_options``: is to be the name of a JSON file, not the options: what is "
                "on a command line can be read by others"
            )
        given = files.read_json(where)
    if not isinstance(given, Mapping):
        raise InputError(
            f'{where}: must be one JSON object of names and texts, such as {{"aws_region": ".."}}'
        )
    return store_options.checked(given, where)


def carried() -> dict[str, Any]:
    """What a worker on another machine needs to open what this process can; it holds secrets."""
    _use_named()  # A worker may not have the file.
    return {"given": {**_given}, "environment": environment()}


def carry(what: Mapping[str, Any]) -> None:
    """Takes what `carried` has, in a worker."""
    _given.update(what["given"])
    os.environ.update(what["environment"])


def masked(text: str) -> str:
    """A message without the secrets that are known here, and without those of a path."""
    for secret in sorted(set(_secrets()), key=len, reverse=True):
        text = text.replace(secret, "***")
    text = _SIGNED.sub(r"\1***", text)
    return _IN_PATH.sub(lambda match: f"{match[1] or match[2]}***", text)


def _secrets() -> Iterator[str]:
    for named in (*_given.values(), environment()):
        for name, value in named.items():
            if _SECRET.search(name) and len(value) >= _SHORTEST_SECRET:
                yield value


def environment() -> dict[str, str]:
    """What the libraries read from the environment."""
    return {k: v for k, v in os.environ.items() if k.startswith(_ENVIRONMENT)}
