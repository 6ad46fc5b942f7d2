"""Failures of a model server as one line for a person: what is wrong, and what to do."""

from collections.abc import Callable

from fct_tf.common.files import one_line
from fct_tf.serving.transport import Address, Failure, Settings


def explain(
    failure: Failure,
    address: Address,
    settings: Settings,
    signature: str,
    versions: Callable[[], dict[int, str]],
) -> str:
    """The line.

    Args:
      failure: the last one of a call.
      address, settings: of the client.
      signature: which was asked for, if one was.
      versions: asks which versions the server knows and their states; may raise `Failure`.
    """
    text, where = one_line(failure.message), str(address)
    host = f"{address.scheme}://{address.host}:{address.port}"
    if "ervable not found" in text or "servable version label" in text:
        return _missing(address, text, versions)
    if "larger than maximum input batch size" in text:
        return f"{where}: {text}; lower max_batch_size ({settings.max_batch_size}) to the server's"
    if "larger than max" in text:
        return f"{host}: {text}; lower max_batch_size, or raise the limit on the way"
    if signature and f'"{signature}"' in text and "ignature" in text:
        return f"{where}: has no signature {signature!r}; export the model again"
    if failure.code == "UNAVAILABLE" and "queue" in text:
        return (
            f"{host}: has more requests than it can take ({text}); try again later, with fewer in "
            "flight, or add replicas"
        )
    if failure.code == "UNAVAILABLE":
        waited = f"no answer within {settings.timeout_s:g} s"
        return f"{host}: {waited} ({text}); is the server up, and the port its own?"
    if failure.code == "DEADLINE_EXCEEDED":
        return (
            f"{where}: no result within {settings.timeout_s:g} s; is the server up? If so, allow "
            "it more time, or send fewer rows at a time"
        )
    if failure.code == "RESOURCE_EXHAUSTED":
        return f"{where}: {text}; send fewer rows at a time, or try again later"
    return f"{where}: {text} ({failure.code})"


def _missing(address: Address, text: str, versions: Callable[[], dict[int, str]]) -> str:
    """Of a model, a version or a label that is not served: which ones are."""
    model = address.model
    try:
        states = versions()
    except Failure as failure:
        if failure.code != "NOT_FOUND":
            return f"{address}: {text}"
        return (
            f"{address}: the server has no model {model.name!r}; name one of those in its "
            "configuration, or publish a version and add it there"
        )
    loaded = [str(version) for version, state in states.items() if state == "AVAILABLE"]
    listed = f"loaded: {', '.join(loaded)}" if loaded else "none is loaded"
    if model.label:
        return (
            f"{address}: no version has the label {model.label!r}, or it is not loaded "
            f"({listed}); set it under version_labels in the server's models.config"
        )
    if model.version is not None:
        return (
            f"{address}: version {model.version} is not loaded ({listed}); leave "
            f"@{model.version} out for the highest one, or load it"
        )
    listed = ", ".join(f"{version} {state}" for version, state in states.items())
    return f"{address}: no version is loaded ({listed}); wait, or see the server's log"
