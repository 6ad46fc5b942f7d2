"""What a study evaluates: which queries against which gallery, under which name."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from ml_collections import ConfigDict

from fct_tf import config as schema


@dataclass(frozen=True)
class Case:
    """Something that is evaluated; `name` is query/gallery.

    `query` and `gallery` are columns, of the models `query_model` and `gallery_model`; `side` is
    the one that went through a transformation: `gallery`, `query`, or empty for neither. Of a
    fused search both are fused columns, `fusion` says how, and `query_model` is what the old
    model's queries are searched with beside it.
    Where a share of the gallery was re-embedded as `pairs`, `sample` names these rows and
    `scoring` says whether they count as `backfilled` or are left out (`remaining`). `matched` is
    the column whose vectors `query` has at the size of the gallery's; empty: they are the same.
    """

    name: str
    method: str
    query: str
    gallery: str
    query_model: str
    gallery_model: str
    side: str = ""
    side_info: bool = False
    pairs: float = 0.0
    sample: str = ""
    scoring: str = ""
    matched: str = ""
    fusion: str = ""

    @property
    def keys(self) -> dict:
        """What results.json says of it beside `evaluate`'s record."""
        keys: dict = {
            "method": self.method,
            "case": self.name,
            "query_model": self.query_model,
            "gallery_model": self.gallery_model,
            "side": self.side or None,
            "side_info": self.side_info,
        }
        if self.scoring:
            keys |= {"pairs": self.pairs, "scoring": self.scoring}
        if self.fusion:
            keys["fusion"] = self.fusion
        return keys | ({"sample": self.sample} if self.scoring == "remaining" else {})

    @property
    def is_upgrade(self) -> bool:
        """Whether two models' embeddings are compared that were made to fit each other."""
        return self.query_model != self.gallery_model and bool(
            self.side or self.method != "independent"
        )


def sample_name(section: ConfigDict) -> str:
    """The rows that a transformation's pairs are: those that draw as many share them."""
    return f"pairs_{section.pairs.share:g}_random"


def versions(section: ConfigDict) -> tuple[str, str]:
    """(old, new): the models whose gallery and whose queries a transformation brings together."""
    on_query = section.side == "query"
    return (section.target, section.source) if on_query else (section.source, section.target)


def fused_queries(name: str) -> str:
    """The column of rows of both models' embeddings, as the fused search `name` has them."""
    return f"queries_{name}"


def cases(config: ConfigDict) -> Iterator[Case]:
    """Everything that is evaluated, once."""
    yield from dict.fromkeys(case for case in _cases(config) if case)


def chain_cases(config: ConfigDict, name: str) -> list[list[Case]]:
    """The lower triangle of a chain: row i the queries of version i, column j <= i the gallery.

    They are among `cases`.
    """
    section = config.chains[name]
    through = {versions(config.transformations[t]): t for t in section.transformations}
    rows = []
    for at, new in enumerate(section.versions):
        row = [
            _transformed(config, through[old, new]) if through else untransformed(config, new, old)
            for old in section.versions[:at]
        ]
        rows.append([case for case in [*row, _itself(config, new)] if case])
    return rows


def untransformed(config: ConfigDict, new: str, old: str) -> Case | None:
    """new/old with both as they are; None where their sizes differ and nothing makes them fit.

    The embeddings of a model that was trained to fit one of another size are truncated, or
    zero-padded, as they were in its training.
    """
    method = _trained_to_fit(config, new, old)
    query, gallery = f"embedding_{new}", f"embedding_{old}"
    dims = [schema.embedding_dim(config.models[name]) for name in (new, old)]
    if dims[0] == dims[1]:
        return Case(f"{new}/{old}", method or "independent", query, gallery, new, old)
    if method:
        matched = f"{query}_as_{old}"
        return Case(f"{new}/{old}", method, matched, gallery, new, old, matched=query)
    return None


def _trained_to_fit(config: ConfigDict, new: str, old: str) -> str:
    """How `new` was made to fit `old`, over versions between perhaps; empty: it was not."""
    if schema.compatibility_method(config.models[new]) == "none":
        return ""
    section = config.models[new].compatibility
    fits = section.old == old or _trained_to_fit(config, section.old, old)
    return section.method if fits else ""


def _cases(config: ConfigDict) -> Iterator[Case | None]:
    pairs = dict.fromkeys(versions(section) for section in config.transformations.values())
    sources = dict.fromkeys(source for source, _ in pairs)
    targets = [name for name in dict.fromkeys(target for _, target in pairs) if name not in sources]
    others = [name for name in config.models if name not in sources and name not in targets]

    def transformed(old: str, new: str, scoring: str = "backfilled") -> list[Case]:
        return [
            _transformed(config, name, scoring)
            for name, section in config.transformations.items()
            if versions(section) == (old, new)
        ]

    for name in sources:
        yield _itself(config, name)
    for old, new in pairs:
        yield untransformed(config, new, old)
        yield from transformed(old, new)
    for name, model in config.models.items():
        if schema.compatibility_method(model) != "none":
            yield untransformed(config, name, model.compatibility.old)
    for name in config.chains:
        for row in chain_cases(config, name):
            yield from row[:-1]
    for name in [*targets, *others]:
        yield _itself(config, name)
    if config.evaluation.more_cases:
        yield from _both_on_both_sides(config)
    if config.side_info.method != "none" and config.evaluation.more_cases:
        name = "side_info"
        yield Case(f"{name}/{name}", name, name, name, name, name)
    for old, new in pairs:
        remaining = [case for case in transformed(old, new, "remaining") if case.scoring]
        for share, sample in dict.fromkeys((case.pairs, case.sample) for case in remaining):
            more = {"pairs": share, "sample": sample, "scoring": "remaining"}
            yield _itself(config, old, **more)
            yield from (case for case in remaining if case.sample == sample)
            yield _itself(config, new, **more)


def _itself(config: ConfigDict, name: str, **more) -> Case:
    column, method = f"embedding_{name}", schema.compatibility_method(config.models[name])
    method = "independent" if method == "none" else method
    return Case(f"{name}/{name}{_note(more)}", method, column, column, name, name, **more)


def _transformed(config: ConfigDict, name: str, scoring: str = "backfilled") -> Case:
    section = config.transformations[name]
    old, new = versions(section)
    more = {}
    if section.pairs.share:
        more = {"pairs": section.pairs.share, "sample": sample_name(section)}
        more["scoring"] = scoring
    sides, columns = f"{new}/T({old})", (f"embedding_{new}", f"embedding_{name}")
    if section.side == "query":
        sides, columns = f"T({new})/{old}", (f"embedding_{name}", f"embedding_{old}")
    if fusion := _fusion(section):
        sides, columns = f"{old}+{new}/{old}+T({old})", (fused_queries(name), f"embedding_{name}")
        more["fusion"] = fusion
    label = f"{sides} {name}{_note(more)}"
    return Case(label, name, *columns, new, old, section.side, section.side_info, **more)


def _both_on_both_sides(config: ConfigDict) -> Iterator[Case]:
    """What a fused search can hope for: its queries, and its gallery with all rows re-embedded.

    Transformations that fuse alike, such as those corrected by more and by fewer pairs, have it
    in common.
    """
    seen: list = []
    for name, section in config.transformations.items():
        if not schema.is_fused(section):
            continue
        old, new = versions(section)
        both, column = f"{old}+{new}", fused_queries(name)
        chosen = name if section.fusion.choose_weight else ""
        alike = [both, section.side_info, schema.to_dict(section.fusion), chosen]
        if alike not in seen:
            seen.append(alike)
            case = Case(f"{both}/{both} {name}", name, column, column, both, both)
            yield dataclasses.replace(case, side_info=section.side_info, fusion=_fusion(section))


def _fusion(section: ConfigDict) -> str:
    """How a transformation is fused; empty where it is not."""
    if not schema.is_fused(section):
        return ""
    return "whitened" if section.fusion.whiten else "fused"


def _note(more: dict) -> str:
    """Behind the name of a case that leaves the pairs out."""
    if more.get("scoring") != "remaining":
        return ""
    return f" (remaining {100 * (1 - more['pairs']):g} %)"
