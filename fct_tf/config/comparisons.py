"""What experiments compare: several models or transformations at once, by name."""

from typing import Any

from ml_collections import ConfigDict

from fct_tf.config.sections import transformation


def compatible_models(new: ConfigDict, old: str = "old") -> ConfigDict:
    """The model `new` made compatible with the model `old`, by name: `bct`, `l2`, `triplet` and
    `contrastive`. As in openBCT, `l2` has no classification loss; the others have.
    """
    models = ConfigDict()
    for method in ("bct", "l2", "triplet", "contrastive"):
        section = new.copy_and_resolve_references()
        section.compatibility.update(method=method, old=old, classification=method != "l2")
        models[method] = section
    return models


def transformations(
    pairs_share: float = 0.0, fastfill: bool = False, fused: bool = False, **recipe: Any
) -> ConfigDict:
    """What is compared from the model `old` to the model `new`, by name.

    `fct` and `fct_no_side_info`, the paper's; `affine`, `affine_side_info` and `procrustes`, the
    floor that they must beat; `affine_query` and `procrustes_query`, the same with the new
    model's queries mapped to the old gallery; with `pairs_share` of the gallery re-embedded also
    `fct_pairs` and `fct_pairs_no_side_info`; with `fastfill` also `fastfill` and
    `fastfill_no_side_info`; with `fused` also `fct_fused`.

    Args:
      pairs_share: see `pairs`.
      fastfill: see `fastfill_transformation`.
      fused: see `fused_transformation`.
      **recipe: `train_epochs`, `warmup_epochs` and `batch_size`; by default the paper's.
    """
    sections = ConfigDict()
    for name in ("fct_no_side_info", "fct", "affine", "affine_side_info", "procrustes"):
        section = transformation(side_info=name in ("fct", "affine_side_info"), **recipe)
        section.map = name.partition("_")[0].replace("fct", "mlp")
        sections[name] = section
    for floor in ("affine", "procrustes"):
        section = transformation("new", "old", side_info=False, **recipe)
        section.update(map=floor, side="query")
        sections[f"{floor}_query"] = section
    for base in ("fct_no_side_info", "fct") if pairs_share else ():
        section = transformation(side_info=base == "fct", **recipe)
        section.base = base
        section.pairs.share = pairs_share
        sections[base.replace("fct", "fct_pairs")] = section
    for name in ("fastfill_no_side_info", "fastfill") if fastfill else ():
        sections[name] = fastfill_transformation(side_info=name == "fastfill", **recipe)
    if fused:
        sections.fct_fused = fused_transformation("fct", **recipe)
    return sections


def fastfill_transformation(**settings: Any) -> ConfigDict:
    """A `transformation` as FastFill trains it (arXiv 2303.04766); it wants labelled rows."""
    section = transformation(**settings)
    section.update(discriminative_weight=1.0, uncertainty="heteroscedastic")
    return section


def fused_transformation(base: str, weight: float = 0.5, **settings: Any) -> ConfigDict:
    """The `transformation` called `base`, trained already, with the old model beside it: each query
    is embedded by both, and each gallery row compared twice.
    """
    section = transformation(**settings)
    section.base, section.fusion.weight = base, weight
    return section


def fused_comparison(pairs_share: float, **recipe: Any) -> ConfigDict:
    """The paper's maps, each by itself, as a fused search (`_fused`) and as a whitened one
    (`_whitened`): with side-information (`fct`) and without, with and without `pairs_share` of the
    gallery re-embedded (`_pairs`).

    Args:
      **recipe: `train_epochs`, `warmup_epochs` and `batch_size`; by default the paper's.
    """
    sections = ConfigDict()
    for base in ("fct", "fct_no_side_info"):
        for suffix in ("", "_pairs"):
            alone = transformation(side_info=base == "fct", **recipe)
            if suffix:
                alone.base, alone.pairs.share = base, pairs_share
            sections[base + suffix] = alone
            for kind in ("fused", "whitened"):
                section = fused_transformation(base, side_info=base == "fct", **recipe)
                section.pairs.share = alone.pairs.share
                section.fusion.whiten = kind == "whitened"
                sections[f"{base}{suffix}_{kind}"] = section
    return sections
