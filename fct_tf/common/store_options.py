"""The options that open object stores: which there are, of which kind, and what holds without.

The libraries take every name that they do not know for none: a misspelt one would be found out as
credentials that are missing, or not at all. Names are those of `object_store`, which Lance and
obstore share: of S3 with `aws_` in front or without, likewise of the others.
"""

import re
from collections.abc import Mapping
from typing import Any

from fct_tf.common.errors import InputError, nearest

_S3 = (
    "access_key_id bucket bucket_name checksum_algorithm conditional_put "
    "container_authorization_token_file container_credentials_full_uri "
    "container_credentials_relative_uri copy_if_not_exists default_region disable_bulk_delete "
    "disable_tagging endpoint endpoint_url imdsv1_fallback metadata_endpoint region request_payer "
    "role_arn role_session_name s3_express secret_access_key server_side_encryption session_token "
    "skip_signature sse_bucket_key_enabled sse_customer_key_base64 sse_kms_key_id token "
    "unsigned_payload virtual_hosted_style_request web_identity_token_file"
).split()
_GOOGLE = (
    "application_credentials base_url bearer_token bucket bucket_name service_account "
    "service_account_key service_account_path skip_signature"
).split()
_AZURE = (
    "container_name credential_type disable_tagging endpoint fabric_cluster_identifier "
    "fabric_session_token fabric_token_service_url fabric_workload_host federated_token_file "
    "identity_endpoint msi_endpoint msi_resource_id object_id skip_signature use_azure_cli "
    "use_fabric_endpoint"
).split()
_AZURE_STORAGE = (
    "access_key account_key account_name authority_host authority_id client_id client_secret "
    "encryption_key endpoint master_key sas_key sas_token tenant_id token use_emulator"
).split()
_AZURE_BOTH = "authority_host authority_id client_id client_secret tenant_id".split()


def _with(names: list[str], *prefixes: str) -> set[str]:
    return {f"{prefix}{name}" for name in names for prefix in prefixes}


# Scheme of a store -> the options that are of it alone.
_s3 = _with(_S3, "", "aws_") | {"aws_endpoint_url_sts"}
_google = _with(_GOOGLE, "", "google_")
_azure = (
    _with(_AZURE, "", "azure_")
    | _with(_AZURE_STORAGE, "", "azure_storage_")
    | _with(_AZURE_BOTH, "azure_")
    | {"bearer_token"}
)
OF_STORE = {
    **dict.fromkeys(("s3", "s3a"), frozenset(_s3)),
    "gs": frozenset(_google),
    **dict.fromkeys(("az", "azure", "adl", "abfs", "abfss"), frozenset(_azure)),
}

# Of how the client connects, whatever the store.
_DURATIONS = {
    "connect_timeout", "http2_keep_alive_interval", "http2_keep_alive_timeout", "pool_idle_timeout",
    "read_timeout", "timeout",
}  # fmt: skip
_TEXTS = {
    "default_content_type", "proxy_ca_certificate", "proxy_excludes", "proxy_url", "user_agent",
}  # fmt: skip
_CLIENT_SWITCHES = {
    "allow_http", "allow_invalid_certificates", "http1_only", "http2_keep_alive_while_idle",
    "http2_only", "randomize_addresses",
}  # fmt: skip
CLIENT = _DURATIONS | _TEXTS | _CLIENT_SWITCHES | {"pool_max_idle_per_host"}
# Of how often is asked anew.
RETRIES = {"client_max_retries", "client_retry_timeout", "download_retry_count"}
# Of Lance alone, and of the stores that it alone opens.
_LANCE = {"aws_provider_scheme", "block_size"}
_OF_LANCE = re.compile(r"(base_\d+\.|oss_|tos_|cos_|hf_|goosefs_|opendal_|lance_)\w+")

_NUMBERS = RETRIES | {"block_size", "pool_max_idle_per_host"}
_SWITCH = re.compile(
    r"(aws_|google_|azure_|azure_storage_)?(disable_\w+|imdsv1_fallback|s3_express|skip_signature"
    r"|sse_bucket_key_enabled|unsigned_payload|use_\w+|virtual_hosted_style_request)"
)
_UNITS = r"(ns|us|ms|s|sec|seconds?|m|min|minutes?|h|hr|hours?|d|days?)"
_DURATION = re.compile(rf"(\d+\s*{_UNITS}\s*)+")
_BOOLEAN = re.compile(r"true|false|yes|no|on|off|y|n|1|0", re.IGNORECASE)
_REGION = re.compile(r"[\w.-]+")
# What may be shown of a name: not that in place of a name a key or a secret was written.
_NAME = re.compile(r"[A-Za-z]{1,24}([_.-][A-Za-z0-9]{1,24})+|[a-z]{1,16}")

KNOWN = frozenset().union(*OF_STORE.values(), CLIENT, RETRIES, _LANCE)

# What holds where nobody says otherwise. Within `timeout` (30 s in both libraries) a whole part of
# an upload has to pass, on a slow line too. Silence is found out before, see
# `objects._ask_first`.
RETRY = {"client_max_retries": "3", "client_retry_timeout": "45", "download_retry_count": "1"}


def checked(given: Mapping[Any, Any], where: str) -> dict[str, str]:
    """The options as texts, by the names that both libraries have for them.

    Args:
      where: they come from, for messages. Values are shown in none that may be a secret.

    Raises:
      InputError: an option that no store has, or a value that is not of its kind.
    """
    options = {}
    for place, (key, value) in enumerate(given.items(), 1):
        name = _name(key)
        shown = key if isinstance(key, str) and _NAME.fullmatch(key) else f"name {place}"
        if name not in KNOWN and not _OF_LANCE.fullmatch(name):
            raise InputError(
                f"{where}: {shown}: no store has such an option{nearest(name, sorted(KNOWN))}"
            )
        kind = _kind(name)
        if isinstance(value, bool):
            value = str(value).lower()
        elif not isinstance(value, str | int | float):
            raise InputError(f"{where}: {shown}: must be {kind or 'a text'}, not {_type(value)}")
        elif name in _DURATIONS and not isinstance(value, str):
            value = f"{value}s"
        value = str(value)
        if not _fits(name, value):
            # These are no secrets, unless they are written in the wrong place.
            wrong = value if len(value) <= 12 else "what is there"
            raise InputError(f"{where}: {shown}: must be {kind or 'a text'}, not {wrong}")
        options[name] = value
    return options


def _name(told: Any) -> str:
    name = str(told).lower().replace("endpoint_url_s3", "endpoint")
    short = name.removeprefix("aws_").replace("request_timeout", "timeout")
    return short if short in CLIENT | RETRIES else name


def _kind(name: str) -> str:
    if name in _NUMBERS:
        return "a whole number" + (" of seconds" if name.endswith("timeout") else "")
    if name in _DURATIONS:
        return "a time such as 30s or 2m"
    if _is_switch(name):
        return "true or false"
    return "the name of a region, such as us-east-1" if name.endswith("region") else ""


def _fits(name: str, value: str) -> bool:
    if name in _NUMBERS:
        return value.isdecimal()
    if name in _DURATIONS:
        return bool(_DURATION.fullmatch(value.strip()))
    if _is_switch(name):
        return bool(_BOOLEAN.fullmatch(value))
    if name.endswith("region"):
        return bool(_REGION.fullmatch(value))
    return value not in ("true", "false")


def _is_switch(name: str) -> bool:
    return name in _CLIENT_SWITCHES or bool(_SWITCH.fullmatch(name))


def _type(value: Any) -> str:
    return {"NoneType": "null", "dict": "an object", "list": "a list"}.get(
        type(value).__name__, type(value).__name__
    )
