"""Every setting of ScaNN, under ScaNN's own names, with defaults for a number of rows.

ScaNN (Guo et al., arXiv 1908.10396) partitions the rows into leaves (`tree`), scores the rows of
the nearest leaves with compressed codes (`score_ah`) and computes the distance of the best of
them from the rows themselves (`reorder`).
"""

import dataclasses
import math
import typing
from dataclasses import dataclass

from fct_tf.errors import InputError

# Below this number of rows exact search is as fast as an index.
EXACT_ROWS = 2000
DATA = ("float32", "bfloat16", "int8")


@dataclass(frozen=True)
class Settings:
    """How an index is built and searched. None leaves a setting to ScaNN, 0 leaves a stage out.

    With neither leaves nor codes (`score="brute_force"` of float32) the search is exact.

    Partitioning (ScaNN's `tree`):
      num_leaves: 0 for none. num_leaves_to_search: of them for a query; a search may ask for
      others. training_sample_size, training_iterations, random_init, min_partition_size,
      spherical, quantize_centroids, incremental_threshold: of the k-means that makes them.
      avq, soar_lambda, overretrieve_factor: anisotropic leaves, and a second leaf for each row
      (SOAR); ScaNN has them for inner products alone, so they go with cosine only.
      upper_tree_*: a tree over the leaves, for very many of them.
    Scoring:
      score: `ah` (codes) or `brute_force` (the rows as `score_data`).
      dimensions_per_block, anisotropic_quantization_threshold, hash_type: of the codes.
      ah_training_sample_size, ah_training_iterations: `training_...` of ScaNN's `score_ah`.
      residual_quantization: codes of the difference to the leaf's centre; cosine only.
    Reordering:
      reordering_num_neighbors: rows that get their distance from `reordering_data`; 0 for none.
    Projection of rows for leaves and codes: pca_reduction_dim, or pca_significance_threshold and
      pca_truncation_threshold, or truncate_dim, the first dimensions only.
    """

    num_leaves: int = 0
    num_leaves_to_search: int = 0
    training_sample_size: int | None = None
    min_partition_size: int | None = None
    training_iterations: int | None = None
    spherical: bool = False
    quantize_centroids: bool = False
    random_init: bool = True
    incremental_threshold: float | None = None
    avq: float | None = None
    soar_lambda: float | None = None
    overretrieve_factor: float | None = None
    upper_tree_num_leaves: int = 0
    upper_tree_num_leaves_to_search: int = 0
    upper_tree_avq: float | None = None
    upper_tree_soar_lambda: float | None = None
    upper_tree_overretrieve_factor: float | None = None
    upper_tree_scoring_mode: str = "int8"
    upper_tree_anisotropic_quantization_threshold: float | None = None
    score: str = "ah"
    score_data: str = "float32"
    dimensions_per_block: int = 2
    anisotropic_quantization_threshold: float | None = 0.2
    hash_type: str = "lut16"
    ah_training_sample_size: int | None = None
    ah_training_iterations: int | None = None
    residual_quantization: bool = False
    reordering_num_neighbors: int = 0
    reordering_data: str = "float32"
    reordering_anisotropic_quantization_threshold: float | None = None
    pca_reduction_dim: int | None = None
    pca_significance_threshold: float | None = None
    pca_truncation_threshold: float | None = None
    truncate_dim: int | None = None

    @classmethod
    def for_rows(cls, num_rows: int, dim: int, distance: str = "l2", **changed) -> "Settings":
        """The defaults for n rows: 2 sqrt(n) leaves, a fifteenth of them searched, 100 reordered.

        Few rows are searched exactly. Settings given by name count instead of the defaults; of
        leaves alone, a fifteenth is searched.

        Raises:
          InputError: a setting that ScaNN does not have, or that does not fit the rows.
        """
        leaves = round(2 * num_rows**0.5) if num_rows >= EXACT_ROWS else 0
        indexing = ("num_leaves", "reordering_num_neighbors", "score", "dimensions_per_block")
        if not leaves and not any(changed.get(name) for name in indexing):
            found = dataclasses.replace(EXACT, **cls._known(changed))
        else:
            leaves = changed.get("num_leaves", leaves)
            usual: dict = {"num_leaves": leaves}
            usual["num_leaves_to_search"] = max(1, round(leaves / 15)) if leaves else 0
            if changed.get("score", "ah") == "ah":
                usual["reordering_num_neighbors"] = 100
            usual["training_sample_size"] = min(num_rows, 250_000)
            found = cls(**{**usual, **cls._known(changed)})
        found.check(num_rows, dim, distance)
        return found

    @property
    def is_exact(self) -> bool:
        """Whether every row's distance is computed."""
        return not self.num_leaves and self.score == "brute_force" and self.score_data == "float32"

    @property
    def wants_inner_product(self) -> bool:
        """Whether it has a stage that ScaNN has for inner products alone."""
        return bool(self.residual_quantization) or not (self.avq is None is self.soar_lambda)

    @property
    def keeps_float32(self) -> bool:
        """Whether the index holds the rows as they are."""
        if self.score == "brute_force":
            return self.score_data == "float32"
        return self.reordering_num_neighbors > 0 and self.reordering_data == "float32"

    def check(self, num_rows: int, dim: int, distance: str) -> None:
        """Refuses settings that do not fit `num_rows` rows of `dim` values.

        Raises:
          InputError: names the setting and what it may be.
        """
        for field in dataclasses.fields(self):
            self._check_type(field.name, getattr(self, field.name))
        bounds = {
            "num_leaves": (0, num_rows),
            "num_leaves_to_search": (1 if self.num_leaves else 0, self.num_leaves),
            "upper_tree_num_leaves": (0, self.num_leaves),
            "upper_tree_num_leaves_to_search": (
                1 if self.upper_tree_num_leaves else 0,
                self.upper_tree_num_leaves,
            ),
            "dimensions_per_block": (1, dim),
            "pca_reduction_dim": (1, dim),
            "truncate_dim": (1, dim - 1),
            "reordering_num_neighbors": (0, None),
            "training_sample_size": (1, None),
            "training_iterations": (1, None),
            "min_partition_size": (1, None),
            "ah_training_sample_size": (1, None),
            "ah_training_iterations": (1, None),
        }
        for name, (least, most) in bounds.items():
            value = getattr(self, name)
            if value is not None and (value < least or most is not None and value > most):
                wanted = f"from {least} to {most}" if most is not None else f"{least} or more"
                raise InputError(f"{name}={value}: must be {wanted} for {num_rows} rows x {dim}")
        words = {"score": ("ah", "brute_force"), "hash_type": ("lut16", "lut256")}
        data = ("score_data", "reordering_data", "upper_tree_scoring_mode")
        for name, valid in {**words, **dict.fromkeys(data, DATA)}.items():
            if getattr(self, name) not in valid:
                raise InputError(f"{name}={getattr(self, name)}: must be {' or '.join(valid)}")
        if self.wants_inner_product and distance != "cosine":
            raise InputError(
                "avq, soar_lambda and residual_quantization go with distance=cosine only: ScaNN "
                "has them for inner products; leave them out"
            )
        if (self.wants_inner_product or self.upper_tree_num_leaves) and not self.num_leaves:
            raise InputError("avq, soar_lambda, residual_quantization, upper_tree: need num_leaves")
        if self.num_leaves and self.score == "brute_force" and self.score_data == "bfloat16":
            raise InputError("score_data=bfloat16: ScaNN has it without leaves only; take int8")
        projections = ("pca_reduction_dim", "pca_significance_threshold", "truncate_dim")
        named = [name for name in projections if getattr(self, name) is not None]
        if len(named) > 1:
            raise InputError(f"{' and '.join(named)}: give one of them")

    @classmethod
    def _known(cls, values: dict) -> dict:
        names = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            if name not in names:
                raise InputError(f"{name}: no setting of ScaNN; there are: {', '.join(names)}")
        return values

    @classmethod
    def _check_type(cls, name: str, value: object) -> None:
        kinds = typing.get_args(_TYPES[name]) or (_TYPES[name],)
        fits = type(value) in kinds or (type(value) is int and float in kinds)
        if not fits or (isinstance(value, float) and not math.isfinite(value)):
            wanted = " or ".join(kind.__name__ for kind in kinds if kind is not type(None))
            raise InputError(f"{name}={value!r}: must be of type {wanted}")

    def to_json(self) -> dict:
        """As an object of JSON, with every setting."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict) -> "Settings":
        """Raises `InputError` for unknown names and other types."""
        found = cls(**cls._known(values))
        for name, value in values.items():
            cls._check_type(name, value)
        return found


_TYPES = typing.get_type_hints(Settings)
EXACT = Settings(score="brute_force", anisotropic_quantization_threshold=None)
