"""Working directories that know which settings they belong to.

`settings.json` in a working directory holds the settings (and fingerprints of the inputs) of the
run that fills it. A run that was stopped continues; a finished one is not repeated; results of
other settings are never taken for one's own.
"""

import os
import shutil
from pathlib import Path
from typing import Any, Literal

from absl import logging

from fct_tf.errors import InputError
from fct_tf.files import make_dir, read_json, write_json

# What to do with a finished run, or one of other settings: refuse it; skip a finished one and
# restart one of other settings; or start over in both cases.
Existing = Literal["refuse", "skip", "overwrite"]


def begin(
    workdir: str | os.PathLike, output: str | os.PathLike, settings: dict, existing: Existing
) -> bool:
    """Claims `workdir` for a run with `settings`; returns whether that run has finished already.

    Args:
      workdir: directory of the run; made if missing, emptied if a run is to start over.
      output: what a finished run leaves, in `workdir` or elsewhere.
      settings: all that the run's result depends on, as JSON.
      existing: what to do with what is there.

    Raises:
      InputError: the run is finished, or has other settings, and `existing` is `refuse`.
    """
    workdir = Path(workdir)
    recorded = workdir / "settings.json"
    finished = os.path.lexists(output)
    changed = changes(read_json(recorded), settings) if recorded.exists() else []
    if changed:
        told = "; ".join(changed[:5]) + (f"; and {len(changed) - 5} more" if changed[5:] else "")
        if existing == "refuse":
            raise InputError(
                f"{workdir}: holds a run with other settings ({told}); choose another --workdir "
                "or pass --overwrite"
            )
        logging.info("%s: starting over, the settings changed: %s", workdir, told)
    elif finished:
        if existing == "refuse":
            raise InputError(f"{output}: exists already; pass --overwrite to replace it")
        if existing == "skip" and recorded.exists():
            return True
    if changed or finished:
        clear(workdir)
        remove(output)
    make_dir(workdir)
    write_json(recorded, settings)
    return False


def clear(workdir: str | os.PathLike) -> None:
    """Removes a run's directory; the settings go first, so that a rest is never resumed."""
    (Path(workdir) / "settings.json").unlink(missing_ok=True)
    shutil.rmtree(workdir, ignore_errors=True)


def remove(path: str | os.PathLike) -> None:
    """Removes a file or directory tree, if it is there."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)


def changes(old: Any, new: Any, key: str = "") -> list[str]:
    """How two settings differ, one `key: old -> new` for each value."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for name in sorted({*old, *new}):
            found += changes(old.get(name), new.get(name), f"{key}.{name}" if key else name)
        return found
    return [] if old == new else [f"{key}: {old!r} -> {new!r}"]
