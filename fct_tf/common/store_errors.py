"""What Lance and obstore say when a store fails, in one line: what is wrong, and what to do.

Only what passes by itself is to be tried again: a store that is busy or broken for the moment.
"""

import os
import re

from fct_tf.common import files, stores
from fct_tf.common.errors import InputError

_IN_FILE = "in the file of ``storage_options``"
_REFUSED = (
    "the store refuses the credentials ({found}); check them, and what they are allowed to do"
)
_REGION = f"the bucket lies in another region; set aws_region {_IN_FILE}, or AWS_REGION"
# What the libraries say -> what is wrong, and what to do. The first that fits is told.
_KNOWN = [
    (
        r"NoSuchBucket|ContainerNotFound|(bucket|container) does not exist",
        "there is no such bucket; make it, or correct its name",
    ),
    (
        r"InvalidBucketName|bucket is not valid|InvalidResourceName|Invalid bucket name",
        "this cannot be the name of a bucket; correct it",
    ),
    (
        r"builder error|BadScheme|URL scheme is not allowed",
        "the endpoint is http://, which is refused; use https://, or allow it by "
        f'"allow_http": "true" {_IN_FILE}, or AWS_ALLOW_HTTP=true',
    ),
    (
        r"Failed to get AWS credentials|ProviderError|169\.254\.\d+\.\d+|metadata\.google"
        r"|CredentialsNotLoaded|NoCredentials|MissingAccessKeyId|MissingSecretAccessKey",
        "no credentials are found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or what your "
        "store has), or name a file of them with ``storage_options``",
    ),
    (
        r"RequestTimeTooSkewed|RequestExpired",
        "the clock of this machine is wrong, so the store refuses its requests; set it",
    ),
    (
        r"PermanentRedirect|AuthorizationHeaderMalformed|BareRedirect|IllegalLocationConstraint"
        r"|Missing region|redirect without LOCATION|incorrectly configured region"
        r"|301 Moved|307 Temporary",
        _REGION,
    ),
    (
        r"InvalidAccessKeyId|SignatureDoesNotMatch|AccessDenied|ExpiredToken|InvalidToken"
        r"|InvalidClientTokenId|AuthenticationFailed|AuthFailure|Unauthenticated|PermissionDenied"
        r"|AllAccessDisabled|AccountProblem|TokenRefreshRequired|InvalidSecurity",
        _REFUSED,
    ),
    (r"403 Forbidden|401 Unauthorized", _REFUSED),
    (
        r"No object store provider found|Unable to recogni[sz]e URL",
        "no store is known by such a name; s3://, gs:// and az:// are",
    ),
    (
        r"failed to parse|(Configuration key|Invalid key): ?'?[\w.]+|Unable to parse",
        "the store's options are wrong ({found}); correct them in the file of ``storage_options``, "
        "or in the environment (AWS_*, GOOGLE_*, AZURE_*)",
    ),
    (
        r"UnknownIssuer|invalid peer certificate|CertificateInvalid|InvalidContentType"
        r"|InvalidMessage|corrupt message|wrong version number",
        "the endpoint does not speak https, or its certificate is not trusted ({found}); check "
        f"aws_endpoint {_IN_FILE}, or AWS_ENDPOINT",
    ),
    (
        r"kind: Timeout|TimedOut|operation timed out",
        "the store has not answered in time; check the network and try again, or let one request "
        f'take longer by "timeout": "2m" {_IN_FILE}',
    ),
    (
        r"error sending request|dns error|tcp connect|timed out|[Cc]onnection (refused|reset)",
        f"the store cannot be reached; check the network and the endpoint (aws_endpoint {_IN_FILE},"
        " or AWS_ENDPOINT)",
    ),
]
# How every error of a store begins that is none of these.
_ANY = re.compile(r"(?:Generic|Unknown) [\w/]+ error: (.*)", re.DOTALL)
# What passes.
_TRANSIENT = re.compile(
    r"\b(408|425|429|5(?!01|05)\d\d) [A-Z]|SlowDown|ServiceUnavailable|InternalError|ServerBusy"
    r"|RequestTimeout|OperationTimedOut|TooManyRequests|OperationAborted|connection closed"
    r"|error decoding response body"
)
# Where in its own source Lance has raised it.
_SOURCE = re.compile(r",? /\S+\.rs:\d+:\d+")
_ADDRESS = re.compile(r"https?://[^\s?]+")
_HOST = re.compile(r"https?://[^\s/?]+")


def explained(error: Exception, uri: str | os.PathLike = "") -> InputError | None:
    """What to raise for an error of Lance or obstore that a store is the cause of; None of others.

    Args:
      uri: of what was opened; by default what the error says of it.
    """
    text = _SOURCE.sub("", files.one_line(error))
    address = _ADDRESS.search(text)
    where = os.fspath(uri) or (address[0] if address else "object store")
    for pattern, template in _KNOWN:
        match = re.search(pattern, text)
        if match:
            return InputError(stores.masked(f"{where}: {template.format(found=match[0])}"))
    if re.search("not found", text, re.IGNORECASE):
        return None  # The store is well.
    other = _ANY.search(text)
    if not other:
        return None
    said = _short(stores.masked(other[1]))
    if _TRANSIENT.search(text):
        return InputError(stores.masked(f"{where}: the store has failed ({said}); try again"))
    return InputError(
        stores.masked(
            f"{where}: the store does not do what is asked ({said}); check the path, and the "
            "region and the endpoint in the options"
        )
    )


def silent(uri: str, error: str, seconds: float) -> InputError:
    """What to raise where nobody has answered."""
    host = _HOST.search(error)
    return InputError(
        stores.masked(
            f"{uri}: no answer in {seconds:.0f} s from {host[0] if host else 'the store'}; check "
            f"the network and the endpoint (aws_endpoint {_IN_FILE}, or AWS_ENDPOINT); "
            f'"connect_timeout": "60s" {_IN_FILE} waits longer'
        )
    )


def _short(said: str) -> str:
    """The code of an answer in XML, and what is before it."""
    code = re.search(r"<Code>(\w+)</Code>", said)
    start = said.partition("<")[0].partition("Debug source")[0].strip(" :-")
    return f"{start[:260]}{f': {code[1]}' if code else ''}"
