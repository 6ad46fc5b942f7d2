"""What to type after a study: commands that work as they are."""

import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict


def text(config: ConfigDict, records: Sequence[Mapping[str, Any]], workdir: Path) -> str:
    """A line for each: open the report, serve the best transformation, try a folder of one's own.

    Args:
      records: the content of results.json.
    """
    fct = program()
    page = shlex.quote(str(workdir / "report" / "index.html"))
    steps = {"open the report": f"{_python()} -m webbrowser {page}"}
    name = _to_serve(config, records)
    if name:
        artifact = shlex.quote(str(workdir / f"seed_{config.seeds[0]}" / name / "artifact"))
        steps["serve it"] = (
            f"{fct} export_serving --model={artifact} --output=models/{name} && "
            f"{fct} model_server --model_name={name} --model_base_path=$PWD/models/{name} "
            "--rest_api_port=8501"
        )
    if config.dataset.train.startswith("glyphs"):
        steps["try your own folder"] = (
            f"{fct} study --config=configs/image_folder.py --workdir=runs/own "
            "--config.dataset.train=folder:DIR:train --config.dataset.gallery=folder:DIR:val"
        )
    return "\n".join(f"{what}:\n  {command}" for what, command in steps.items())


def program() -> str:
    """How the command `fct` of this installation is typed here."""
    beside = Path(sys.executable).parent / "fct"
    on_path = shutil.which("fct")
    if on_path and Path(on_path).absolute() == beside:
        return "fct"
    return shlex.quote(_from_here(beside)) if beside.exists() else f"{_python()} -m fct_tf"


def _python() -> str:
    on_path = shutil.which("python")
    same = on_path and Path(on_path).absolute() == Path(sys.executable)
    return "python" if same else shlex.quote(_from_here(Path(sys.executable)))


def _from_here(path: Path) -> str:
    inside = path.is_relative_to(Path.cwd())
    return os.path.relpath(path) if inside else str(path)


def _to_serve(config: ConfigDict, records: Sequence[Mapping[str, Any]]) -> str:
    """The best transformation that stands for itself, a model of stored rows; empty: there is none.

    One with a base is a correction or a fusion of what is served already.
    """
    alone = {
        name
        for name, section in config.transformations.items()
        if section.side == "gallery" and not (section.base or section.compose)
    }
    tried = [record for record in records if record["method"] in alone]
    return max(tried, key=lambda record: record["map"])["method"] if tried else ""
