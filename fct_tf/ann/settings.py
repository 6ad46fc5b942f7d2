"""Every setting of ScaNN, under ScaNN's own names, with defaults for a number of rows.

ScaNN (Guo et al., arXiv 1908.10396) partitions the rows into leaves (`tree`), scores the rows of
the nearest leaves with compressed codes (`score_ah`) and computes the distance of the best of
them from the rows themselves (`reorder`).
"""

import dataclasses
import math
import typing
from dataclasses import dataclass

from fct_tf.common.errors import InputError

# Below this number of rows exact search is as fast as an index.
EXACT_ROWS = 2000
# Below this one, comparing the codes of all rows is faster than choosing leaves. Queries/s at a
# recall@10 of 0.998 and more, of codes and with leaves: of 20,000 rows of 128 values 30,000 and
# 25,500, of 384 values 13,800 and 12,500; of 50,000 rows 15,800 and 21,500, 6,800 and 9,700.
LEAVES_ROWS = 25_000
# Of the leaves of some ten thousand rows a fifteenth is too few: CMC@1 is up to 0.3 points off,
# with 50 leaves 0.1.
LEAST_SEARCHED = 50
DATA = ("float32", "bfloat16", "int8")


def _setting(default, text: str, words: tuple[str, ...] = ()):
    """A setting with its default, what it is and, of some, the words that it may be."""
    return dataclasses.field(default=default, metadata={"help": text, "words": words})


@dataclass(frozen=True)
class Settings:
    """How an index is built and searched. None leaves a setting to ScaNN, 0 leaves a stage out.

    With neither leaves nor codes (`score="brute_force"` of float32) the search is exact. What each
    setting is stands with it, for the help of commands.
    """

    num_leaves: int = _setting(0, "Leaves that rows are partitioned into; 0: none.")
    num_leaves_to_search: int = _setting(0, "Leaves that are searched for a query.")
    training_sample_size: int | None = _setting(None, "Rows that leaves are trained on.")
    min_partition_size: int | None = _setting(None, "Rows of the smallest leaf (ScaNN: 50).")
    training_iterations: int | None = _setting(
        None, "Iterations of the k-means of leaves (ScaNN: 12)."
    )
    spherical: bool = _setting(False, "Spherical k-means.")
    quantize_centroids: bool = _setting(False, "Centres of leaves in 8 bits.")
    random_init: bool = _setting(True, "Leaves start from random rows, not by k-means++.")
    incremental_threshold: float | None = _setting(
        None, "Rows (or their share) after which ScaNN trains further by itself."
    )
    avq: float | None = _setting(None, "Anisotropic leaves; cosine only.")
    soar_lambda: float | None = _setting(None, "A second leaf for each row (SOAR); cosine only.")
    overretrieve_factor: float | None = _setting(None, "For SOAR: how much more to retrieve.")
    upper_tree_num_leaves: int = _setting(0, "Leaves of a tree over the leaves; 0: none.")
    upper_tree_num_leaves_to_search: int = _setting(0, "Its leaves searched for a query.")
    upper_tree_avq: float | None = _setting(None, "Anisotropic leaves of it.")
    upper_tree_soar_lambda: float | None = _setting(None, "A second leaf for each leaf (SOAR).")
    upper_tree_overretrieve_factor: float | None = _setting(
        None, "For its SOAR: how much more to retrieve."
    )
    upper_tree_scoring_mode: str = _setting("int8", "Number format of its centres.", DATA)
    upper_tree_anisotropic_quantization_threshold: float | None = _setting(
        None, "Anisotropic threshold of its centres."
    )
    score: str = _setting("ah", "Compare codes, or the rows themselves.", ("ah", "brute_force"))
    score_data: str = _setting("float32", "Number format of the rows, for brute_force.", DATA)
    dimensions_per_block: int = _setting(2, "Dimensions that a code stands for.")
    anisotropic_quantization_threshold: float | None = _setting(
        0.2, "Of codes: above it errors along a row weigh more than across."
    )
    hash_type: str = _setting("lut16", "Codes of 4 or of 8 bits.", ("lut16", "lut256"))
    ah_training_sample_size: int | None = _setting(None, "Rows that codes are trained on.")
    ah_training_iterations: int | None = _setting(None, "Iterations of the training of codes.")
    residual_quantization: bool = _setting(
        False, "Codes of the difference to the leaf's centre; cosine only."
    )
    reordering_num_neighbors: int = _setting(0, "Rows whose true distance is computed; 0: none.")
    reordering_data: str = _setting("float32", "Number format of the rows for that.", DATA)
    reordering_anisotropic_quantization_threshold: float | None = _setting(
        None, "Anisotropic threshold, for int8 rows."
    )
    pca_reduction_dim: int | None = _setting(None, "Dimensions that PCA keeps.")
    pca_significance_threshold: float | None = _setting(
        None, "Or the share of the variance it keeps."
    )
    pca_truncation_threshold: float | None = _setting(None, "With the latter: where to truncate.")
    truncate_dim: int | None = _setting(None, "Search the first dimensions only.")

    @classmethod
    def for_rows(cls, num_rows: int, dim: int, distance: str = "l2", **changed) -> "Settings":
        """The defaults for n rows.

        Few rows are searched exactly. Of more, codes of all rows are compared, at most 6 dimensions
        to a code, and 200 rows reordered. From 25,000 rows on there are 2 sqrt(n) leaves, of which
        a fifteenth is searched, 50 at least; a code stands for 2 dimensions, and 100 rows are
        reordered.

        Settings given by name count instead of the defaults.

        Raises:
          InputError: a setting that ScaNN does not have, or that does not fit the rows.
        """
        cls._known(changed)
        indexing = ("num_leaves", "reordering_num_neighbors", "score", "dimensions_per_block")
        if num_rows < EXACT_ROWS and not any(changed.get(name) for name in indexing):
            settings = dataclasses.replace(EXACT, **changed)
        else:
            leaves = changed.get("num_leaves", _usual_leaves(num_rows, changed))
            usual: dict = {"num_leaves": leaves, "dimensions_per_block": min(2, dim)}
            if not leaves and num_rows >= EXACT_ROWS:
                usual["dimensions_per_block"] = min(dim, max(2, min(6, dim // 16)))
            usual["num_leaves_to_search"] = min(leaves, max(LEAST_SEARCHED, round(leaves / 15)))
            if changed.get("score", "ah") == "ah":
                usual["reordering_num_neighbors"] = 100 if leaves else 200
            usual["training_sample_size"] = min(num_rows, 250_000)
            settings = cls(**{**usual, **changed})
        settings.check(num_rows, dim, distance)
        return settings

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

    @property
    def can_change(self) -> bool:
        """Whether ScaNN can replace, add and remove rows.

        Not where they are int8 alone; and with SOAR it crashes when a row is replaced.
        """
        int8 = self.reordering_num_neighbors > 0 and self.reordering_data == "int8"
        return not int8 and self.soar_lambda is None and self.upper_tree_soar_lambda is None

    @property
    def can_rebalance(self) -> bool:
        """Whether ScaNN can make leaves and codes anew: not of codes, nor of rounded rows alone."""
        return bool(self.reordering_num_neighbors) or self.keeps_float32

    def nbytes(self, num_rows: int, dim: int) -> int:
        """Bytes of memory that rows, codes and leaves take, by their sizes."""
        if self.is_exact:
            return 4 * num_rows * dim
        bytes_of = {"float32": 4, "bfloat16": 2, "int8": 1}
        total = 4 * self.num_leaves * dim + (4 * num_rows if self.num_leaves else 0)
        if self.score == "ah":
            coded = self.pca_reduction_dim or self.truncate_dim or dim
            codes = -(-coded // self.dimensions_per_block)
            copies = 1 if self.soar_lambda is None else 2
            total += copies * num_rows * (-(-codes // 2) if self.hash_type == "lut16" else codes)
        else:
            total += num_rows * dim * bytes_of[self.score_data]
        if self.reordering_num_neighbors and not (self.score != "ah" and self.keeps_float32):
            total += num_rows * dim * bytes_of[self.reordering_data]
        return total

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
            "dimensions_per_block": (1, dim if self.score == "ah" else None),
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
                allowed = f"from {least} to {most}" if most is not None else f"{least} or more"
                raise InputError(f"{name}={value}: must be {allowed} for {num_rows} rows x {dim}")
        for field in dataclasses.fields(self):
            value, words = getattr(self, field.name), field.metadata["words"]
            if words and value not in words:
                raise InputError(f"{field.name}={value}: must be {' or '.join(words)}")
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
        for name, value in values.items():
            if name not in names:
                raise InputError(f"{name}: no setting of ScaNN; there are: {', '.join(names)}")
            cls._check_type(name, value)
        return values

    @classmethod
    def _check_type(cls, name: str, value: object) -> None:
        kinds = typing.get_args(_TYPES[name]) or (_TYPES[name],)
        fits = type(value) in kinds or (type(value) is int and float in kinds)
        if not fits or (isinstance(value, float) and not math.isfinite(value)):
            expected = " or ".join(kind.__name__ for kind in kinds if kind is not type(None))
            raise InputError(f"{name}={value!r}: must be of type {expected}")

    def to_json(self) -> dict:
        """As an object of JSON, with every setting."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict) -> "Settings":
        """Raises `InputError` for unknown names and other types."""
        return cls(**cls._known(values))


def _usual_leaves(num_rows: int, changed: dict) -> int:
    """How many leaves there are by default; 0 where none serve better."""
    codes_alone = changed.get("score", "ah") == "ah" and not any(
        changed.get(name) for name in _OF_LEAVES
    )
    fewest = LEAVES_ROWS if codes_alone else EXACT_ROWS
    return round(2 * num_rows**0.5) if num_rows >= fewest else 0


_TYPES = typing.get_type_hints(Settings)
_NAMES = [field.name for field in dataclasses.fields(Settings)]
# Who gives one of these wants leaves.
_OF_LEAVES = {*_NAMES[: _NAMES.index("score")], "residual_quantization"}
EXACT = Settings(score="brute_force", anisotropic_quantization_threshold=None)
