"""docs/reference/, as far as the code says it itself: `python -m tests.reference` writes it anew.

Flags of every command, keys of an experiment file, the Python API. A test holds them current.
"""

import ast
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from absl import flags

import fct_tf
from fct_tf.ann import index
from fct_tf.api import Backfilled, BackfillingCurves, Neighbours
from fct_tf.common import cli, flag_groups
from fct_tf.config import comparisons, sections
from fct_tf.serving import client

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "docs" / "reference"
COMMANDS = sorted(
    path.stem for path in (ROOT / "fct_tf").glob("*.py") if not path.stem.startswith("_")
)
WRITTEN = "<!-- Written by python -m tests.reference; change the code, not this page. -->"


def flags_of(command: str, argv: Sequence[str] = ()) -> flags.FlagValues:
    """The flags of a command, as it defines them before it parses `argv`."""
    values = flags.FlagValues()
    cli._argv[:] = argv or [command]
    importlib.import_module(f"fct_tf.{command}").define_flags(values)
    return values


# Commands -------------------------------------------------------------------------------------


def commands() -> str:
    parts = [
        "# Commands",
        WRITTEN,
        "Every command is `fct NAME` or `python -m fct_tf.NAME`; `--help` prints what is here. "
        "Exit status: 0 done, 2 bad input (one line on stderr says what is wrong and what to do), "
        "130 interrupted; some have more, which they name. Flags in bold must be given.",
        "\n".join(f"- [{name}](#{name}): {_summary(name)}" for name in COMMANDS),
    ]
    for name in COMMANDS:
        values = flags_of(name)
        parts += [
            f"## {name}",
            _fenced(inspect.getdoc(importlib.import_module(f"fct_tf.{name}")) or ""),
        ]
        for heading, defined in flag_groups.of(values).items():
            parts.append(_table((heading.rstrip(":"), "", "default"), list(map(_flag, defined))))
    return "\n\n".join(parts) + "\n"


def _summary(name: str) -> str:
    return (importlib.import_module(f"fct_tf.{name}").__doc__ or "").split("\n\n")[0].strip()


def _flag(flag: Any) -> tuple[str, str, str]:
    required = any("must have a value" in one.message for one in flag.validators)
    name = f"`--{flag.name}`"
    default = flag.default
    if isinstance(default, list):
        default = ",".join(map(str, default))
    shown = "" if default in (None, "") else f"`{default}`"
    text = " ".join((flag.help or "").replace("<|", "<").split())
    text = text.replace("; repeat this option to specify a list of values", "")
    return f"**{name}**" if required else name, _cell(text), shown


def _fenced(doc: str) -> str:
    """A docstring as Markdown: what is indented, commands or a table of words, is code."""
    parts = re.split(r"\n((?:  .*\n|\n(?=  ))+)", doc + "\n")
    shown = [
        f"```\n{textwrap.dedent(part).strip()}\n```" if number % 2 else part.strip("\n")
        for number, part in enumerate(parts)
    ]
    return "\n\n".join(part for part in shown if part)


# Experiment files -----------------------------------------------------------------------------


def experiment_keys() -> str:
    """Every key of the sections, in the order of the file, with the comments beside it."""
    parts = [
        "# Keys of an experiment file",
        WRITTEN,
        "An experiment file has a function `get_config()`. It calls the functions below (`from "
        "fct_tf import config as schema`) and changes fields of what they return; "
        "`--config.KEY=VALUE` overrides from the command line. A key that is not listed here is "
        "an error that names the nearest one that is. Durations carry their unit: of "
        "`train_epochs` and `train_steps` exactly one is given, of `warmup_epochs` and "
        "`warmup_steps` at most one.",
    ]
    public = [f for f in _functions() if not f.name.startswith("_")]
    keys = {f.name: _keys(f) for f in public}
    for function in [*public, *_functions(comparisons)]:
        call = f"schema.{function.name}({ast.unparse(function.args)})"
        parts += [f"## {function.name}", f"`{call}`", _doc(ast.get_docstring(function) or "")]
        if rows := keys.get(function.name):
            parts.append(_table(("key", "default", "what it says"), rows))
    names = [
        (f"`{name}`", _settings(settings)) for name, settings in sections.AUGMENTATIONS.items()
    ]
    parts += ["## Names of augmentations", _table(("name", "settings"), names)]
    names = [(f"`{name}`", _settings(settings)) for name, settings in sections.HEADS.items()]
    parts += ["## Names of heads", _table(("name", "settings"), names)]
    return "\n\n".join(parts) + "\n"


def _settings(settings: dict[str, Any]) -> str:
    return ", ".join(f"`{key}={value!r}`" for key, value in settings.items()) or "none"


def _keys(function: ast.FunctionDef) -> list[tuple[str, str, str]]:
    """(key, default, comment) of the dictionaries and fields that a function makes."""
    source = inspect.getsource(sections).split("\n")
    rows: list[tuple[str, str, str]] = []
    positional = function.args.args
    given = [None] * (len(positional) - len(function.args.defaults)) + function.args.defaults
    arguments = {one.arg: default for one, default in zip(positional, given, strict=True)}
    if function.args.vararg:
        arguments[function.args.vararg.arg] = None
    arguments |= dict(
        zip([one.arg for one in function.args.kwonlyargs], function.args.kw_defaults, strict=True)
    )

    def default(value: ast.expr) -> str:
        if isinstance(value, ast.Name) and value.id in arguments:
            value = arguments[value.id]
        return "as given" if value is None else _default(value)

    def private(call: ast.expr) -> list[tuple[str, str, str]]:
        """Of `_training(..)` and the like, which several sections share."""
        name = ast.unparse(call).partition("(")[0]
        return [row for one in _functions() if one.name == name for row in _keys(one)]

    def section(value: ast.expr, prefix: str) -> bool:
        if isinstance(value, ast.Call) and ast.unparse(value.func) == "ConfigDict" and value.args:
            value = value.args[0]
        if not isinstance(value, ast.Dict):
            return False
        for key, one in zip(value.keys, value.values, strict=True):
            if key is None:  # **_training(..) and the like.
                rows.extend(private(one))
                continue
            name = f"{prefix}{ast.literal_eval(key)}"
            if not section(one, f"{name}."):
                rows.append((f"`{name}`", default(one), _comment(source, key.lineno, one)))
        return True

    for node in function.body:
        if isinstance(node, ast.Assign | ast.Return) and node.value is not None:
            value = node.value
            while isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute):
                if value.func.attr != "lock":
                    break
                value = value.func.value  # ConfigDict({..}).lock()
            target = node.targets[0] if isinstance(node, ast.Assign) else None
            if isinstance(target, ast.Attribute):
                if not section(value, f"{target.attr}."):
                    where = f"`{target.attr}`"
                    rows.append((where, default(value), _comment(source, node.lineno, value)))
            elif not section(value, "") and isinstance(node, ast.Return):
                name = ast.unparse(value).partition("(")[0]
                if name.startswith("_") and isinstance(value, ast.Call):
                    named = [(f"`{k.arg}`", default(k.value), "") for k in value.keywords]
                    rows += [*named, *private(value)]
    return rows


def _functions(module: ModuleType = sections) -> list[ast.FunctionDef]:
    body = ast.parse(inspect.getsource(module)).body
    return [node for node in body if isinstance(node, ast.FunctionDef)]


def _default(value: ast.expr) -> str:
    text = ast.unparse(value)
    if text.startswith(("placeholder(", "_or_placeholder(")):
        kind = re.search(r"\((\w+)\)", text)
        given = text.startswith("_or")
        return "as given" if given else f"none ({kind[1] if kind else text})"
    if text == "ConfigDict()":
        return "none; any names"
    public = {f.name for f in _functions() if not f.name.startswith("_")}
    name, call, _ = text.partition("(")
    return f"[`{text}`](#{name})" if call and name in public else f"`{text}`"


def _comment(source: list[str], line: int, value: ast.expr) -> str:
    """The comments above a key, and those behind its value."""
    above: list[str] = []
    number = line - 2
    while source[number].strip().startswith("#"):
        above.insert(0, source[number].strip().removeprefix("#").strip())
        number -= 1
    last = source[(value.end_lineno or line) - 1]
    behind = last.partition("  # ")[2]
    return _cell(" ".join([*above, behind]).strip())


# Python ---------------------------------------------------------------------------------------


def python_api() -> str:
    parts = [
        "# Python API",
        WRITTEN,
        _doc(inspect.getdoc(importlib.import_module("fct_tf.api")) or ""),
    ]
    classes = (fct_tf.Gallery, fct_tf.Transformation, fct_tf.Model)
    for one in (*classes, Neighbours, Backfilled, BackfillingCurves):
        parts += [f"## {one.__name__}", _doc(inspect.getdoc(one) or "")]
        for name, member in vars(one).items():
            if not name.startswith("_") or name == "__call__":
                parts += _member(one, name, member)
    parts += ["## InputError", _doc(inspect.getdoc(fct_tf.InputError) or "")]
    for module, names in (
        (index, ("build", "open_index", "Index")),
        (client, ("connect", "Client")),
    ):
        parts += [f"## {module.__name__}", _doc(inspect.getdoc(module) or "")]
        for name in names:
            one = getattr(module, name)
            parts += _callable(name, one, "###")
            for key, member in vars(one).items() if inspect.isclass(one) else ():
                if not key.startswith("_"):
                    parts += _member(one, key, member)
    return "\n\n".join(part for part in parts if part) + "\n"


def _member(one: type, name: str, member: Any) -> Iterator[str]:
    shown = f"{one.__name__}.{name}" if name != "__call__" else f"{one.__name__}(..)"
    if isinstance(member, property):
        returns = inspect.signature(member.fget).return_annotation  # type: ignore[arg-type]
        kind = (
            "" if returns is inspect.Signature.empty else f": {inspect.formatannotation(returns)}"
        )
        yield f"### {shown}"
        yield f"`{name}{_unquoted(kind)}`"
        yield _doc(inspect.getdoc(member) or "")
    elif isinstance(member, classmethod | staticmethod) or inspect.isfunction(member):
        yield from _callable(shown, getattr(one, name), "###")


def _callable(shown: str, one: Any, level: str) -> Iterator[str]:
    yield f"{level} {shown}"
    name = "__call__" if shown.endswith("(..)") else shown.rpartition(".")[2]
    yield f"```python\n{_signature(name, one)}\n```"
    yield _doc(inspect.getdoc(one) or "")


def _signature(name: str, one: Any) -> str:
    signature = inspect.signature(one)
    parameters = [p for p in signature.parameters.values() if p.name != "self"]
    shown: list[str] = []
    for number, parameter in enumerate(parameters):
        before = parameters[number - 1].kind if number else None
        if parameter.kind is parameter.KEYWORD_ONLY and before not in (
            parameter.KEYWORD_ONLY,
            parameter.VAR_POSITIONAL,
        ):
            shown.append("*")
        shown.append(_unquoted(re.sub(r"<function (\w+) at 0x\w+>", r"\1", str(parameter))))
    returns = ""
    if signature.return_annotation not in (inspect.Signature.empty, None):
        returns = " -> " + inspect.formatannotation(signature.return_annotation)
    line = f"def {name}({', '.join(shown)}){_unquoted(returns)}: ..."
    if len(line) <= 100:
        return line
    inside = "".join(f"    {one},\n" for one in shown)
    return f"def {name}(\n{inside}){_unquoted(returns)}: ..."


def _unquoted(annotation: str) -> str:
    text = re.sub(r"'([^']*)'", lambda m: m[1] if m[1][:1].isupper() else m[0], annotation)
    text = re.sub(r"\b(?:fct_tf|collections|numpy|pathlib|pyarrow|typing|os)\.(?:\w+\.)*", "", text)
    return text.replace("'", '"')


# Text -----------------------------------------------------------------------------------------

PARTS = ("Args", "Returns", "Raises", "Attributes", "Yields")


def _doc(doc: str) -> str:
    """A docstring as Markdown: its parts are lists, what else is indented is code."""
    first, *rest = re.split(rf"\n(?=(?:{'|'.join(PARTS)}):\n)", f"\n{doc}\n")
    kept = [_fenced(first.strip("\n"))]
    for part in rest:
        name, _, items = part.partition(":\n")
        items, _, more = items.partition("\n\n")
        ends = r"^  (?=\S)" if name not in ("Returns", "Yields") else r"\A"
        listed = [" ".join(item.split()) for item in re.split(ends, items, flags=re.M)]
        kept += [f"**{name}**", "\n".join(f"- {_emphasis(item)}" for item in listed if item)]
        kept.append(more.strip("\n"))
    return "\n\n".join(part for part in kept if part)


def _emphasis(item: str) -> str:
    name = re.match(r"([\w*]+(?:, [\w*]+)*): ", item)
    if not name:
        return item
    names = ", ".join(f"`{one}`" for one in name[1].split(", "))
    return f"{names}: {item[name.end() :]}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |".replace("  |", " |") for cells in lines)


PAGES = {
    "commands.md": commands,
    "experiment_keys.md": experiment_keys,
    "python_api.md": python_api,
}

if __name__ == "__main__":
    REFERENCE.mkdir(parents=True, exist_ok=True)
    for page, write in PAGES.items():
        (REFERENCE / page).write_text(write())
