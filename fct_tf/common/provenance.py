"""Where results come from: library versions, and who made a column with what."""

import platform
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from fct_tf import __version__

LIBRARIES = ("tensorflow", "keras", "keras-cv", "numpy", "pyarrow", "pylance", "scann")


def library_versions(others: Sequence[str] = ()) -> dict[str, str]:
    """Versions of this package, Python and the libraries that results depend on, and of others."""
    versions = {"fct_tf": __version__, "python": platform.python_version()}
    for name in (*LIBRARIES, *others):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # Not everything is needed everywhere.
    return versions


def processor() -> str:
    """The model name of the processor."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [
                line.split(":", 1)[1].strip() for line in file if line.startswith("model name")
            ]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def created_by(
    door: str, settings: dict[str, Any], *, model: str, source: Sequence[dict[str, str]] = ()
) -> dict[str, Any]:
    """The `fct.created_by` of a column.

    Args:
      door: the command that makes it.
      settings: what it was told.
      model: human name of the model, shown in messages.
      source: `{"column": .., "space": ..}` of each column that it is computed from.
    """
    return {
        "door": door,
        "settings": settings,
        "versions": library_versions(),
        "source": list(source),
        "model": model,
    }
