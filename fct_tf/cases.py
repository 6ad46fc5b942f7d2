"""What a study evaluates: which queries against which gallery, under which name."""

from collections.abc import Iterator
from dataclasses import dataclass

from ml_collections import ConfigDict


@dataclass(frozen=True)
class Case:
    """Something that is evaluated; `name` is query/gallery.

    Where a share of the gallery was re-embedded as `pairs`, `sample` names these rows and
    `scoring` says whether they count as `backfilled` or are left out (`remaining`).
    """

    name: str
    method: str
    query: str
    gallery: str
    side_info: bool = False
    pairs: float = 0.0
    sample: str = ""
    scoring: str = ""

    @property
    def keys(self) -> dict:
        """What results.json says of it beside `evaluate`'s record."""
        keys = {"method": self.method, "case": self.name, "side_info": self.side_info}
        if self.scoring:
            keys |= {"pairs": self.pairs, "scoring": self.scoring}
        return keys | ({"sample": self.sample} if self.scoring == "remaining" else {})


def sample_name(section: ConfigDict) -> str:
    """The rows that a transformation's pairs are: those that draw alike share them."""
    name = f"pairs_{section.pairs.share:g}_{section.pairs.draw}"
    return f"{name}_{section.source}" if section.pairs.draw == "spread" else name


def cases(config: ConfigDict) -> Iterator[Case]:
    """Everything that is evaluated, once."""
    yield from dict.fromkeys(_cases(config))


def _cases(config: ConfigDict) -> Iterator[Case]:
    pairs = dict.fromkeys((t.source, t.target) for t in config.transformations.values())
    dims = {name: model.backbone.embedding_dim for name, model in config.models.items()}
    sources = dict.fromkeys(source for source, _ in pairs)
    targets = [name for name in dict.fromkeys(target for _, target in pairs) if name not in sources]
    others = [name for name in config.models if name not in sources and name not in targets]

    def itself(name: str, **more) -> Case:
        column, method = f"embedding_{name}", config.models[name].compatibility.method
        method = "independent" if method == "none" else method
        return Case(f"{name}/{name}{_note(more)}", method, column, column, **more)

    def untransformed(new: str, old: str) -> Iterator[Case]:
        section = config.models[new].compatibility
        made_for_it = section.method != "none" and section.old == old
        if dims[new] == dims[old] and (made_for_it or (old, new) in pairs):
            method = section.method if made_for_it else "independent"
            yield Case(f"{new}/{old}", method, f"embedding_{new}", f"embedding_{old}")

    for name in sources:
        yield itself(name)
    for old, new in pairs:
        yield from untransformed(new, old)
        yield from _transformed(config, old, new)
    for name, model in config.models.items():
        if model.compatibility.method != "none":
            yield from untransformed(name, model.compatibility.old)
    for name in [*targets, *others]:
        yield itself(name)
    if config.side_info.method != "none":
        yield Case("side_info/side_info", "side_info", "side_info", "side_info")
    for old, new in pairs:
        remaining = [case for case in _transformed(config, old, new, "remaining") if case.scoring]
        for share, sample in dict.fromkeys((case.pairs, case.sample) for case in remaining):
            more = {"pairs": share, "sample": sample, "scoring": "remaining"}
            yield itself(old, **more)
            yield from (case for case in remaining if case.sample == sample)
            yield itself(new, **more)


def _transformed(
    config: ConfigDict, old: str, new: str, scoring: str = "backfilled"
) -> Iterator[Case]:
    for name, section in config.transformations.items():
        if (section.source, section.target) != (old, new):
            continue
        more = {}
        if section.pairs.share:
            more = {"pairs": section.pairs.share, "sample": sample_name(section)}
            more["scoring"] = scoring
        columns = (f"embedding_{new}", f"embedding_{name}")
        label = f"{new}/T({old}) {name}{_note(more)}"
        yield Case(label, name, *columns, side_info=section.side_info, **more)


def _note(more: dict) -> str:
    """Behind the name of a case that leaves the pairs out."""
    if more.get("scoring") != "remaining":
        return ""
    by = more["sample"].partition("_spread_")[2]
    spread = f", spread over {by}" if by else ""
    return f" (remaining {100 * (1 - more['pairs']):g} %{spread})"
