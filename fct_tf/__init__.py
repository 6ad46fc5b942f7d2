"""Change the embedding model of a retrieval system without re-embedding its gallery."""

import importlib
import logging
import os
import platform
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fct_tf.api import Gallery, InputError, Model, Transformation

__all__ = ["Gallery", "InputError", "Model", "Transformation"]
__version__ = "0.1.0"

# TensorFlow's C++ notes (no GPU, processor features, unknown graph attributes) would drown
# progress bars and messages; what goes wrong is raised in Python too.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def _switch_on_onednn() -> None:
    """Convolutions by oneDNN on every x86 processor; what the user has set is kept.

    By itself TensorFlow takes it only where the processor has instructions for neural networks
    (AVX-512 VNNI and later). Elsewhere a ResNet then trains four times slower. TensorFlow reads
    the environment once, while it is imported; processes started from here inherit it.
    """
    variable = "TF_ENABLE_ONEDNN_OPTS"
    if platform.machine() not in ("x86_64", "AMD64") or variable in os.environ:
        return
    os.environ[variable] = "1"
    port = sys.modules.get("tensorflow.python.util._pywrap_util_port")
    if port is not None and not port.IsMklEnabled():
        logging.getLogger(__name__).warning(
            "TensorFlow was imported before fct_tf and runs without oneDNN, so convolutions are "
            "several times slower on this processor; import fct_tf first, or set %s=1",
            variable,
        )


_switch_on_onednn()


def __getattr__(name: str) -> Any:
    """The classes of `fct_tf.api`, imported when one is first used: commands pay for none."""
    if name in __all__:
        return getattr(importlib.import_module("fct_tf.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
