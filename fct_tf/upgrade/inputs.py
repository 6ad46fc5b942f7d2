"""Which columns of a gallery a transformation reads: found by the spaces it was trained on."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from fct_tf.common.errors import InputError
from fct_tf.gallery import table
from fct_tf.gallery.columns import Column, fit

# Input of a transformation -> its name in flags and in the SavedModel's description.
ROLES = {"source_embedding": "source", "side_info": "side_info", "target_embedding": "target"}


class Transformation(Protocol):
    """What runs over rows: a SavedModel here, or one behind a server.

    Attributes:
      path: how messages name it.
      info: its description, see `fct_tf.models.info`.
      dims: what it reads, `source_embedding`, then perhaps `side_info`, or of the queries of a
        fused search `target_embedding`, and `embedding`, what it makes -> dimension.
      has_log_variance: whether it also returns `log_variance`.
      fuse: of a fused search, makes rows of both models' embeddings, float32 [n, d_source] and
        [n, d_target]; None of other transformations.
    """

    @property
    def path(self) -> Any: ...
    @property
    def info(self) -> dict[str, Any]: ...
    @property
    def dims(self) -> dict[str, int]: ...
    @property
    def has_log_variance(self) -> bool: ...
    @property
    def fuse(self) -> Callable[[np.ndarray, np.ndarray], np.ndarray] | None: ...

    def query_side(self) -> "Transformation":
        """What makes the queries of a fused search.

        Raises:
          InputError: this is none.
        """
        ...

    def __call__(self, *inputs: np.ndarray) -> dict[str, np.ndarray]:
        """`embedding` float32 [n, d] and, where it has it, `log_variance` float32 [n].

        Args:
          *inputs: float32 [n, dim] each, in the order of `dims`.
        """
        ...


def find_sources(
    gallery: table.Gallery,
    model: Transformation,
    names: Mapping[str, str | None],
    new_column: str = "",
    allow_mismatch: bool | None = False,
    arguments: Mapping[str, str] | None = None,
) -> dict[str, Column]:
    """The columns that a transformation reads: those named, else those in its spaces.

    Args:
      gallery: where to look.
      model: what it needs.
      names: role -> column name; None or empty to find it by its space.
      new_column: not taken for a source.
      allow_mismatch: accept a named column whatever its space is; None: no, and no argument of the
        caller's would.
      arguments: role -> the argument that names its column, where that is not called as in `ROLES`.

    Returns:
      role, of those that the model reads -> column.

    Raises:
      InputError: no column, or more than one, in the space; a named column of another space or
        dimension; side-information for a model without.
    """
    if names.get("side_info") and "side_info" not in model.dims:
        raise InputError(
            f"{model.path}: was trained without side-information; leave ``side_info`` out"
        )
    if names.get("target_embedding") and "target_embedding" not in model.dims:
        raise InputError(
            f"{model.path}: reads the target's embeddings for the queries of a fused search alone; "
            "leave ``target`` out, or add ``side=query``"
        )
    sources = {}
    called = {**ROLES, **(arguments or {})}
    for role, short in ROLES.items():
        if role not in model.dims:
            continue
        needed = Column(
            name=role,
            dim=model.dims[role],
            space=str(model.info.get(f"{short}_space")),
            created_by={"model": model.info.get(f"{short}_model")},
        )
        name = names.get(role)
        if name:
            source = gallery.column(name)
            if not allow_mismatch and not fit(needed, source):
                other = ", or pass ``allow_space_mismatch=True``"
                raise InputError(
                    f"{gallery.path}: column {name!r} lies in space {source.space} (model "
                    f"{source.model}), but the transformation reads {role} from space "
                    f"{needed.space} (model {needed.model}); name another column with "
                    f"``{called[role]}``{'' if allow_mismatch is None else other}"
                )
        else:
            source = _find(gallery, needed, called[role], new_column)
        if source.dim != needed.dim:
            raise InputError(
                f"{gallery.path}: column {source.name!r} has {source.dim} values per row, the "
                f"transformation reads {needed.dim} as {role}"
            )
        sources[role] = source
    return sources


def _find(gallery: table.Gallery, needed: Column, short: str, new_column: str) -> Column:
    columns = [column for name, column in gallery.columns.items() if name != new_column]
    # An upgraded column serves the next transformation where the model's own is missing.
    same = [column for column in columns if column.space == needed.space]
    candidates = same or [column for column in columns if fit(needed, column)]
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        listed = ", ".join(column.name for column in candidates)
        raise InputError(
            f"{gallery.path}: columns {listed} all lie in the space that the transformation reads "
            f"as {needed.name}; choose one with ``{short}``"
        )
    listed = ", ".join(f"{c.name}: {c.space} (model {c.model})" for c in columns) or "none"
    raise InputError(
        f"{gallery.path}: no column in space {needed.space} (model {needed.model}), which the "
        f"transformation reads as {needed.name}; there are: {listed}"
    )
