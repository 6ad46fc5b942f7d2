"""What benchmarks say of the machine and the command they ran with."""

import os
import platform
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from fct_tf.common.provenance import library_versions


def cpu() -> dict:
    """Model name and the vector extensions that matter here."""
    found: dict = {"name": platform.processor() or platform.machine(), "flags": []}
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return found
    values = dict(line.split(":", 1) for line in lines if ":" in line)
    values = {key.strip(): value.strip() for key, value in values.items()}
    wanted = ("avx2", "fma", "avx512", "avx_vnni", "amx")
    flags = [flag for flag in values.get("flags", "").split() if flag.startswith(wanted)]
    return {"name": values.get("model name", found["name"]), "flags": flags}


def about(argv: Sequence[str]) -> dict:
    """What a record says of how it was made: the command, the processor, its cores, versions."""
    return {
        "command": command(argv),
        "cpu": cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "versions": library_versions(),
    }


def peak_bytes() -> int:
    """Peak resident memory of this process so far (Linux)."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))


def command(argv: Sequence[str]) -> str:
    """The command line without the directories that absolute paths in it begin with."""
    return shlex.join(["python", *map(without_directories, argv)])


def without_directories(text: str) -> str:
    """`--images=folder:/data/photos:val` as `--images=folder:photos:val`."""
    return re.sub(r"(^|[=:,])/(?:[^/:,]+/)*", r"\1", text)
