"""The command `fct`: every command of the package by its name.

  fct COMMAND --help
  fct --version

`fct evaluate ..` and `python -m fct_tf.evaluate ..` are the same.
"""

import ast
import importlib
import pkgutil
import sys
from pathlib import Path

import fct_tf
from fct_tf.common import cli

HELP = ("--help", "-h", "-help", "--helpfull", "help")


def main() -> None:
    """Runs the command that `sys.argv` names, and exits."""
    given, *arguments = sys.argv[1:] or HELP[:1]
    if given in HELP:
        print(_help())
        sys.exit()
    if given in ("--version", "version"):
        print(f"fct_tf {fct_tf.__version__}")
        sys.exit()
    name = given.replace("-", "_")
    if name not in commands():
        near = "" if given.startswith("-") else cli.nearest(name, list(commands()))
        print(f"error: {given}: is no command{near}, see fct --help", file=sys.stderr)
        sys.exit(2)
    command = importlib.import_module(f"fct_tf.{name}")
    sys.argv[:] = [f"fct {name}", *arguments]
    cli.run(command.__doc__, command.main, command.define_flags)


def commands() -> dict[str, Path]:
    """Every command's name and file: the modules at the root of the package."""
    root = Path(__file__).parent
    modules = (module for module in pkgutil.iter_modules([str(root)]) if not module.ispkg)
    return {m.name: root / f"{m.name}.py" for m in modules if not m.name.startswith("_")}


def _help() -> str:
    """The list of commands; their files are read, not imported: that would take seconds."""
    width = max(map(len, commands()))
    lines = [fct_tf.__doc__ or "", "", "fct COMMAND --help tells a command's flags.", ""]
    for name, path in commands().items():
        first = (ast.get_docstring(ast.parse(path.read_bytes())) or "").partition("\n")[0]
        lines.append(f"  {name:{width}}  {first}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
