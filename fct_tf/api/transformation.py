"""A transformation: fitted, run over arrays, kept and published."""

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from fct_tf.api.arguments import GalleryLike, PathLike, uri_of
from fct_tf.common import copies, objects, runs, stores
from fct_tf.common.annotations import checked_methods, numbers
from fct_tf.common.errors import InputError
from fct_tf.gallery.columns import check_finite
from fct_tf.models import info as infos

if TYPE_CHECKING:
    from fct_tf.models.saved_model import Transformation as SavedModel

_BATCH = 8192  # Rows per call.


@checked_methods
class Transformation:
    """A map from one model's embeddings, and perhaps side-information, to another's."""

    def __init__(self, path: PathLike, keep: Any = None):
        """Use `fit` or `load`. keep: what must live as long as this does."""
        from fct_tf.models import saved_model

        self._keep = keep
        self.loaded: SavedModel = saved_model.load_transformation(path)
        # Of the versions in a store, the one; of a training's directory all that is in it.
        all_of_it = not stores.in_store(path) or "saved_model" in objects.folders(str(path))
        self.path = copies.local(path) if all_of_it else self.loaded.path

    @classmethod
    def fit(
        cls,
        gallery: GalleryLike,
        source: str,
        target: str,
        side_info: str | None = None,
        pairs: GalleryLike | None = None,
        method: Literal["fct", "fastfill", "affine", "procrustes"] = "fct",
        *,
        base: "Transformation | PathLike | None" = None,
        backfilled: str = "",
        sources: GalleryLike | None = None,
        classifier: PathLike = "",
        classifier_labels: PathLike = "",
        workdir: PathLike | None = None,
        name: str = "",
        fused: bool = False,
        weight: float | None = None,
        choose_weight: bool = False,
        whiten: bool = False,
        dims: int | None = None,
        seed: int = 0,
        overwrite: bool = False,
        **settings: Any,
    ) -> "Transformation":
        """Trains a transformation on columns of a gallery, as `train_transformation --method`.

        Args:
          gallery: rows that both models have embedded, such as the training images.
          source, target: columns to map from and to.
          side_info: column of the side-information, if there is one.
          pairs: rows of the gallery to be upgraded that the new model has embedded, with the same
            columns; they correct the map.
          method: `fct`, the paper's network; `fastfill`, which also learns a log-variance for each
            row; `affine` or `procrustes`, which are solved for in seconds.
          base: a transformation that `pairs` are only to correct: nothing else is trained.
          backfilled, sources, classifier, classifier_labels: as the flags of
            `train_transformation`.
          fused: make a fused search of it: its rows and `queries` compare with the old and the new
            model at once.
          weight: of a fused search, the share of the old model; None for one half.
          choose_weight: of a fused search, take the weight that retrieves best in `pairs`.
          whiten: of a fused search, make differences within a label alike.
          dims: of a fused search, so many values a row; None for those of both models.
          workdir: where the training keeps its files, and goes on if it is stopped; by default a
            temporary directory, see `save`.
          name: of the transformation; by default that of the method.
          seed: of the initial weights and the order of rows.
          overwrite: start over in a `workdir` that has a run.
          **settings: keys of `fct_tf.config.transformation`, such as `train_steps`, `batch_size`
            or `hidden`, instead of what is taken for this number of rows.

        Raises:
          InputError: an unknown column or setting, too few rows, an existing run, another process
            at work in `workdir`.
        """
        from fct_tf.training.by_method import train_by_method

        fusion = {"weight": weight, "choose_weight": choose_weight, "whiten": whiten, "dims": dims}
        given = {name: one for name, one in fusion.items() if one is not None and one is not False}
        if given and not fused:
            raise InputError(f"{next(iter(given))}: is of a fused search; add fused=True")
        if choose_weight and weight is not None:
            raise InputError("weight: choose_weight takes it from pairs; leave one of them out")
        if fused:
            settings["fusion"] = {"weight": 0.5, **given}
        keep = None
        if workdir is None:
            keep = tempfile.TemporaryDirectory(prefix="fct_tf.")
            workdir = Path(keep.name) / (name or method)
        existing: runs.Existing = "overwrite" if overwrite else "refuse"
        trained = train_by_method(
            method,
            uri_of(gallery),
            source,
            target,
            workdir,
            name=name,
            settings=settings,
            side_info=side_info or "",
            pairs=uri_of(pairs),
            backfilled=backfilled,
            sources=uri_of(sources),
            base=str(getattr(base, "path", base or "")),
            classifier=classifier,
            classifier_labels=classifier_labels,
            seed=seed,
            existing=existing,
        )
        return cls(trained, keep)

    @classmethod
    def load(cls, path: PathLike) -> "Transformation":
        """Opens what `save`, `train_transformation` or `export_serving` wrote.

        Raises:
          InputError: nothing of that kind there.
        """
        return cls(path)

    @property
    def name(self) -> str:
        return self.loaded.info["name"]

    @property
    def info(self) -> dict[str, Any]:
        """What it says of itself: spaces, models, distance, versions."""
        return self.loaded.info

    @property
    def dims(self) -> dict[str, int]:
        """Sizes of `source_embedding`, `embedding` and, where it reads some, `side_info`."""
        return self.loaded.dims

    @property
    def has_log_variance(self) -> bool:
        """Whether it says how uncertain its embeddings are, as FastFill's does."""
        return self.loaded.has_log_variance

    def __repr__(self) -> str:
        models = f"{self.info.get('source_model')} -> {self.info.get('target_model')}"
        return f"Transformation({self.name}: {models}; {self.path})"

    @overload
    def __call__(
        self, source_embedding: Any, side_info: Any = None, *, log_variance: Literal[False] = False
    ) -> np.ndarray: ...

    @overload
    def __call__(
        self, source_embedding: Any, side_info: Any = None, *, log_variance: Literal[True]
    ) -> tuple[np.ndarray, np.ndarray]: ...

    def __call__(
        self, source_embedding: Any, side_info: Any = None, *, log_variance: bool = False
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Transforms rows in memory.

        Args:
          source_embedding: float [n, d_source].
          side_info: float [n, d_side], where it was trained with side-information.
          log_variance: also return how uncertain each row is (FastFill).

        Returns:
          float32 [n, d_target], of a fused search its rows, [n, d]; with `log_variance` a pair of
          that and float32 [n].

        Raises:
          InputError: rows of other dimensions, with NaN or infinity, or no numbers;
            side-information that is missing or not read; no log-variance.
        """
        if log_variance and not self.has_log_variance:
            raise InputError(
                f"{self.path}: {self.name} learnt no log-variance; fit one with method='fastfill'"
            )
        given = {"source_embedding": source_embedding, "side_info": side_info}
        parts = _run(self.loaded, given)
        embedding = _joined(self.loaded, parts)
        if not log_variance:
            return embedding
        empty = np.empty(0, np.float32)
        return embedding, np.concatenate([empty, *(part["log_variance"] for part in parts)])

    def queries(self, source_embedding: Any, target_embedding: Any) -> np.ndarray:
        """Of a fused search, queries in memory; also gallery rows that the new model has embedded.

        Args:
          source_embedding: float [n, d_source], of the old model.
          target_embedding: float [n, d_target], of the new model.

        Returns:
          float32 [n, d], to be compared with the rows that calling it makes.

        Raises:
          InputError: no fused search; rows of other dimensions, with NaN or infinity, or no
            numbers.
        """
        infos.check_fused(self.info, str(self.path), "queries()")
        model = self.loaded.query_side()
        given = {"source_embedding": source_embedding, "target_embedding": target_embedding}
        return _joined(model, _run(model, given))

    def save(self, path: PathLike, overwrite: bool = False) -> Path | str:
        """Copies it to a directory, or the URI of one in an object store, from which `load` and all
        commands take it.

        Raises:
          InputError: an existing path, unless `overwrite`.
        """
        artifact = self._artifact()
        with copies.made_dir(path, "saved_model/saved_model.pb", overwrite) as directory:
            shutil.copytree(self.loaded.path, directory / "saved_model")
            if artifact:
                shutil.copytree(artifact, directory / "artifact")
            pairs = self.path / "pairs.lance"  # Of backfilled rows, for `upgrade`.
            if pairs.is_dir():
                shutil.copytree(pairs, directory / pairs.name)
        return copies.as_path(path)

    def export(
        self,
        output: PathLike,
        *,
        version: int = 0,
        dtype: Literal["float32", "bfloat16"] = "float32",
        warmup_rows: GalleryLike | None = None,
        overwrite: bool = False,
        **settings: Any,
    ) -> str:
        """Publishes it as a version that TF Serving loads, compared with the model; its path.

        Args:
          output: directory of the model's versions, or the URI of one in an object store.
          version: 0 for the next one.
          dtype: of the arithmetic inside.
          warmup_rows: a gallery with rows for the warm-up requests.
          overwrite: replace the version named.
          **settings: further flags of `export_serving`, such as `batch_sizes`, `encoder` and
            `target_encoder`.

        Raises:
          InputError: there is only a SavedModel, no artifact; an existing version.
        """
        from fct_tf.serving.exports import export_model

        artifact = self._artifact()
        if not artifact:
            raise InputError(
                f"{self.path}: a SavedModel alone; name the working directory of its training"
            )
        return export_model(
            artifact,
            os.fspath(output),
            version=version,
            dtype=dtype,
            warmup_rows=uri_of(warmup_rows),
            overwrite=overwrite,
            **settings,
        )

    def _artifact(self) -> Path | None:
        """The artifact beside the SavedModel, if it is there."""
        candidates = (self.path, self.path / "artifact", self.loaded.path.parent / "artifact")
        return next((one for one in candidates if (one / "model.keras").is_file()), None)


def _run(model: "SavedModel", given: dict[str, Any]) -> list[dict[str, np.ndarray]]:
    """What a side makes of arrays, role -> float [n, d] or None: the parts of a call each."""
    name, rows = model.info["name"], {}
    for role, values in given.items():
        dim = model.dims.get(role)
        if (values is None) != (dim is None):
            remedy = "leave it out" if dim is None else f"it reads {dim} values per row"
            raise InputError(f"{role}: {name} was trained {_with(dim)} it; {remedy}")
        if values is None:
            continue
        rows[role] = numbers(values, role)
        if rows[role].ndim != 2 or rows[role].shape[1] != dim:
            raise InputError(f"{role}: shape {list(rows[role].shape)}; {name} reads [n, {dim}]")
        check_finite(rows[role], range(len(rows[role])), role)
    if len({len(one) for one in rows.values()}) > 1:
        raise InputError(f"{' and '.join(rows)}: have different numbers of rows")
    count = len(rows["source_embedding"])
    return [
        model(*(one[start : start + _BATCH] for one in rows.values()))
        for start in range(0, count, _BATCH)
    ]


def _joined(model: "SavedModel", parts: list[dict[str, np.ndarray]]) -> np.ndarray:
    empty = np.empty((0, model.dims["embedding"]), np.float32)
    return np.concatenate([empty, *(part["embedding"] for part in parts)])


def _with(dim: int | None) -> str:
    return "without" if dim is None else "with"
