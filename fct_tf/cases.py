"""What a study evaluates: which queries against which gallery, under which name."""

from collections.abc import Iterator
from dataclasses import dataclass

from ml_collections import ConfigDict


@dataclass(frozen=True)
class Case:
    """Something that is evaluated; `name` is query/gallery.

    Where a share of the gallery was re-embedded as pairs, `scoring` says whether these rows count
    as backfilled or are left out (`remaining`).
    """

    name: str
    method: str
    query: str
    gallery: str
    side_info: bool = False
    pairs: float = 0.0
    draw: str = "random"
    scoring: str = ""

    @property
    def keys(self) -> dict:
        """What results.json says of it beside `evaluate`'s record."""
        keys = {"method": self.method, "case": self.name, "side_info": self.side_info}
        return keys | ({"pairs": self.pairs, "scoring": self.scoring} if self.scoring else {})


def cases(config: ConfigDict) -> Iterator[Case]:
    """Everything that is evaluated."""
    pairs = dict.fromkeys((t.source, t.target) for t in config.transformations.values())
    dims = {name: model.backbone.embedding_dim for name, model in config.models.items()}
    sources = dict.fromkeys(source for source, _ in pairs)
    targets = [name for name in dict.fromkeys(target for _, target in pairs) if name not in sources]
    others = [name for name in config.models if name not in sources and name not in targets]

    def itself(name: str, **more) -> Case:
        method = config.models[name].compatibility.method
        column, note = f"embedding_{name}", _note(more)
        method = "independent" if method == "none" else method
        return Case(f"{name}/{name}{note}", method, column, column, **more)

    for name in sources:
        yield itself(name)
    for old, new in pairs:
        if dims[old] == dims[new]:
            yield Case(f"{new}/{old}", "independent", f"embedding_{new}", f"embedding_{old}")
        yield from _transformed(config, old, new)
    for name in others:
        section = config.models[name].compatibility
        if section.method != "none" and dims[name] == dims[section.old]:
            columns = (f"embedding_{name}", f"embedding_{section.old}")
            yield Case(f"{name}/{section.old}", section.method, *columns)
    for name in [*targets, *others]:
        yield itself(name)
    if config.side_info.method != "none":
        yield Case("side_info/side_info", "side_info", "side_info", "side_info")
    for old, new in pairs:
        remaining = [case for case in _transformed(config, old, new, "remaining") if case.scoring]
        for share, draw in dict.fromkeys((case.pairs, case.draw) for case in remaining):
            more = {"pairs": share, "draw": draw, "scoring": "remaining"}
            yield itself(old, **more)
            yield from (case for case in remaining if (case.pairs, case.draw) == (share, draw))
            yield itself(new, **more)


def _transformed(
    config: ConfigDict, old: str, new: str, scoring: str = "backfilled"
) -> Iterator[Case]:
    for name, section in config.transformations.items():
        if (section.source, section.target) != (old, new):
            continue
        more = {}
        if section.pairs.share:
            more = {"pairs": section.pairs.share, "draw": section.pairs.draw, "scoring": scoring}
        columns = (f"embedding_{new}", f"embedding_{name}")
        label = f"{new}/T({old}) {name}{_note(more)}"
        yield Case(label, name, *columns, side_info=section.side_info, **more)


def _note(more: dict) -> str:
    """Behind the name of a case that leaves the pairs out."""
    if more.get("scoring") != "remaining":
        return ""
    spread = ", spread" if more["draw"] == "spread" else ""
    return f" (remaining {100 * (1 - more['pairs']):g} %{spread})"
