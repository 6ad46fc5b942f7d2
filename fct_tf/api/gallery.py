"""A gallery with all that can be done to it."""

import dataclasses
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fct_tf.api.arguments import GalleryLike, PathLike, uri_of
from fct_tf.api.model import Model, described
from fct_tf.api.search import Neighbours, nearest, reranked
from fct_tf.api.transformation import Transformation
from fct_tf.common.errors import InputError
from fct_tf.engines.engine import open_engine
from fct_tf.gallery import describe, reader, table, verify
from fct_tf.gallery.columns import Column, Rows
from fct_tf.retrieval import exact, in_parts
from fct_tf.retrieval.records import Evaluation

EngineName = Literal["local", "spark"]

if TYPE_CHECKING:
    from fct_tf.ann.index import Index
    from fct_tf.backfill.plan import Plan as BackfillPlan
    from fct_tf.upgrade.judge import Verdict
    from fct_tf.upgrade.plan import Plan as UpgradePlan


@dataclasses.dataclass(frozen=True)
class Backfilled:
    """What a backfilling has done: rows embedded, and (id, reason) of those that were skipped,
    which the file `report` lists if there are any."""

    gallery: "Gallery"
    embedded: int
    skipped: list[tuple[str, str]]
    report: Path


@dataclasses.dataclass(frozen=True)
class BackfillingCurves:
    """What backfilling brings, by policy; `records` are those of `backfilling_curve --output`."""

    records: list[dict[str, Any]]

    @property
    def auc(self) -> dict[str, dict[str, float]]:
        """Policy -> `{"1": .., "map": ..}`, the mean of the curve; of the first random order."""
        first = [r for r in self.records if not r["order"] and not r["corrected"]]
        return {record["policy"]: record["auc"] for record in first}

    def __str__(self) -> str:
        from fct_tf.report import backfilling

        return backfilling.text(self.records)


class Gallery:
    """A table of ids, labels and embedding columns, one column per embedding space.

    It is opened at one version and stays there, whatever others commit. Methods that change the
    table make one new version each, move this object to it, and return it. Rows are matched by id,
    never by position.
    """

    def __init__(self, opened: reader.Gallery):
        """Use `open` or `create`."""
        self._opened = opened

    @classmethod
    def open(cls, uri: PathLike) -> "Gallery":
        """Opens `photos.lance` (the newest version), `photos.lance@7` or `photos.lance@live`.

        Raises:
          InputError: no such gallery, version or tag.
        """
        return cls(reader.open_gallery(uri))

    @classmethod
    def create(
        cls,
        path: PathLike,
        ids: Any,
        vectors: Any,
        labels: Any = None,
        *,
        model: str | Mapping[str, str],
        distance: str | Mapping[str, str] = "l2",
        column: str = "embedding",
        zero_vectors: Literal["refuse", "keep"] = "refuse",
        overwrite: bool = False,
        drop_indices: bool = False,
    ) -> "Gallery":
        """Writes a new gallery of vectors in memory.

        Args:
          path: where; a Lance dataset.
          ids: n unique texts, whole numbers or UUIDs.
          vectors: float [n, d], which becomes the column `column`; or a dictionary of them, name
            of the column -> float [n, d]. float16 stays, all else becomes float32.
          labels: n texts or whole numbers, None where a row has no label; None for no labels.
          model: name of the model that made the vectors; or a dictionary, one for each column.
            Vectors of one name are comparable, in all galleries.
          distance: how rows are compared, `l2` or `cosine`; or one for each column.
          column: name of the column where `vectors` is an array.
          zero_vectors: where the distance is cosine, `refuse` rows without a direction or `keep`
            them.
          overwrite: replace a gallery at `path`: its older versions and tags stay.
          drop_indices: although it has indices.

        Raises:
          InputError: an existing path; repeated or missing ids; NaN or infinity; vectors, ids and
            labels of different lengths.
        """
        from fct_tf.ingest import arrays

        named = vectors if isinstance(vectors, Mapping) else {column: vectors}
        return cls(
            arrays.create(
                os.fspath(path),
                ids,
                named,
                labels,
                model=model,
                distance=distance,
                zero_vectors=zero_vectors,
                overwrite=overwrite,
                drop_indices=drop_indices,
            )
        )

    @property
    def path(self) -> str:
        """Without version and tag."""
        return self._opened.path

    @property
    def uri(self) -> str:
        """Of this version, as the commands take it: `photos.lance@7`."""
        return f"{self.path}@{self.version}"

    @property
    def version(self) -> int:
        """The version that this object shows."""
        return self._opened.version

    @property
    def num_rows(self) -> int:
        return self._opened.num_rows

    @property
    def columns(self) -> dict[str, Column]:
        """The embedding columns by name, each with `dim`, `model`, `space`, `distance`, `kind`."""
        return dict(self._opened.columns)

    @property
    def tags(self) -> dict[str, int]:
        """Tag -> version."""
        return describe.tags(self._opened)

    def describe(self) -> dict[str, Any]:
        """Columns, spaces, tags, versions, sizes and indices, as `inspect_gallery --json` has them.

        `print(gallery)` shows them as a table.
        """
        return describe.describe(self._opened)

    def __len__(self) -> int:
        return self.num_rows

    def __repr__(self) -> str:
        columns = ", ".join(f"{name} [{one.dim}]" for name, one in self._opened.columns.items())
        return f"Gallery({self.uri}: {self.num_rows} rows; {columns})"

    def __str__(self) -> str:
        return describe.text(self.describe())

    def _repr_html_(self) -> str:
        return describe.html(self.describe())

    def read(
        self,
        columns: str | Sequence[str],
        ids: Sequence[str] | None = None,
        *,
        fields: Sequence[str] = (),
    ) -> Rows:
        """Rows in memory.

        Args:
          columns: names of embedding columns, or one name.
          ids: of the rows, in that order; None for all, in the table's order.
          fields: names of further fields of numbers or texts, such as `embedding_fct_origin`.

        Returns:
          `ids` and `labels` object [n], `vectors[column]` float32 [n, d], `fields[name]` [n].

        Raises:
          InputError: unknown column or id, a row with NaN or infinity, a broken data file.
        """
        if ids is not None:
            return self.take(ids, columns, fields=fields)
        return self._opened.read(_names(columns), with_labels=True, fields=fields)

    def batches(
        self,
        columns: str | Sequence[str],
        batch_size: int = 8192,
        *,
        fields: Sequence[str] = (),
    ) -> Iterator[Rows]:
        """The rows in the table's order, at most `batch_size` at a time; otherwise as `read`."""
        names = _names(columns)
        return self._opened.batches(names, batch_size, with_labels=True, fields=fields)

    def take(
        self,
        ids: Sequence[str],
        columns: str | Sequence[str] | None = None,
        *,
        fields: Sequence[str] = (),
    ) -> Rows:
        """The rows with these ids, in that order; `columns` None for all. Otherwise as `read`."""
        names = list(self._opened.columns) if columns is None else _names(columns)
        return self._opened.take(ids, names, fields=fields)

    def add_column(
        self,
        name: str,
        compute: Callable[[Rows], Any],
        read: str | Sequence[str] = (),
        *,
        model: str = "",
        distance: str = "l2",
        batch_size: int = 8192,
        overwrite: bool = False,
        drop_indices: bool = False,
    ) -> "Gallery":
        """Adds a column that a function of yours computes from others, in one commit.

        Args:
          name: of the column.
          compute: from rows (`ids`, `vectors[column]` float32 [n, d]) to float [n, d]; of the rows
            it may use all, but each row's result must not depend on the others.
          read: names of the columns that it needs.
          model: name of the model that the vectors are of, as in `create`; by default the column
            lies in a space of its own, told by its name and by what it was computed from.
          distance: how rows are compared, `l2` or `cosine`.
          batch_size: rows per call of `compute`.
          overwrite: replace a column of this name.
          drop_indices: although it has indices.

        Raises:
          InputError: an existing column, a bad row or result, an old version opened.
        """
        from fct_tf.ingest import computed

        # Stopped halfway it starts anew: nothing says that a function is still the same one.
        with tempfile.TemporaryDirectory() as job_dir:
            self._opened = computed.add_computed(
                self._newest(),
                name,
                compute,
                _names(read),
                model=model,
                distance=distance,
                batch_size=batch_size,
                overwrite=overwrite,
                drop_indices=drop_indices,
                job_dir=job_dir,
            )
        return self

    def tag(self, name: str) -> int:
        """Lets a tag such as `live` point to this version; returns the version.

        A tag that is there is moved: `Gallery.open("photos.lance@5").tag("live")` goes back.
        """
        return table.tag(self.uri, name)

    def verify(self, engine: EngineName = "local", spark_master: str = "") -> list[str]:
        """Looks at every row, id and data file: the problems, one line each; empty if none.

        Args:
          engine: `spark` to look on a cluster: the session there is, or one on `spark_master`.
        """
        with open_engine(engine, spark_master) as opened:
            return verify.verify(self._opened, opened)

    def import_embeddings(
        self,
        embeddings: Any,
        column: str,
        model: str,
        *,
        ids: Any = "",
        labels: str = "",
        key: str = "",
        distance: str = "l2",
        kind: str = "imported",
        compatible_with: Sequence[str] = (),
        zero_vectors: Literal["refuse", "keep"] = "refuse",
        overwrite: bool = False,
        drop_indices: bool = False,
    ) -> "Gallery":
        """Adds embeddings made elsewhere as a column, rows matched by id.

        Args:
          embeddings: a .npy, .npz, HDF5 or Parquet file, a folder of Parquet files, or a Lance
            table; or an array float [n, d] with its `ids`.
          column: its name.
          model: name of the model; embeddings of one name are comparable, in all galleries.
          ids: of a file: name of an array or column in it, or of a file of ids; of an array: n
            ids. The gallery's rows must all be among them.
          labels, key: as the flags of `import_gallery`; for files.
          distance, kind, compatible_with, zero_vectors: as the flags of `import_gallery`.
          overwrite: replace a column of this name.
          drop_indices: although it has indices.

        Raises:
          InputError: a file that cannot be read, a gallery row without embedding, NaN or infinity.
        """
        from fct_tf.ingest import arrays, import_files

        settings: dict[str, Any] = {
            "distance": distance,
            "kind": kind,
            "compatible_with": tuple(compatible_with),
            "zero_vectors": zero_vectors,
            "overwrite": overwrite,
            "drop_indices": drop_indices,
        }
        if isinstance(embeddings, str | os.PathLike):
            source = os.fspath(embeddings)
            text = {"ids": ids, "labels": labels, "key": key}
            table.check_newest(self._opened)
            self._opened = import_files.import_embeddings(
                self.path, source, column, model, **text, **settings
            )
        else:
            self._opened = arrays.add(
                self._newest(), embeddings, column, model, ids=ids, **settings
            )
        return self

    def embed(
        self,
        images: str,
        model: Model | PathLike,
        column: str,
        *,
        kind: str = "",
        match_dims: int = 0,
        missing: bool = False,
        on_bad_image: Literal["error", "skip"] = "error",
        data_dir: str = "",
        batch_size: int = 256,
        zero_vectors: Literal["refuse", "keep"] = "refuse",
        overwrite: bool = False,
        drop_indices: bool = False,
        engine: EngineName = "local",
        spark_master: str = "",
    ) -> "Gallery":
        """Embeds the images of the gallery's rows with a model, as a column.

        Args:
          images: `tfds:NAME:SPLIT`, `folder:PATH[:SPLIT]`, `files:PATH[:SPLIT]` or `glyphs:SPLIT`.
          model: an artifact, a `.keras` file or a SavedModel; `Model.load` describes your own.
          column: its name.
          missing: only the rows that an existing column lacks.
          kind, match_dims, on_bad_image, data_dir, batch_size, zero_vectors, overwrite,
            drop_indices: as the flags of `embed_gallery`.
          engine: `spark` to embed on a cluster: the session there is, or one on `spark_master`.

        Raises:
          InputError: no such model or images, a row without image, an existing column.
        """
        from fct_tf.ingest import embed_images

        path, more = described(model)
        with open_engine(engine, spark_master) as opened:
            self._opened = embed_images.embed_gallery(
                self._newest().path,
                images,
                path,
                column,
                kind=kind,
                match_dims=match_dims,
                missing=missing,
                on_bad_image=on_bad_image,
                data_dir=data_dir,
                batch_size=batch_size,
                zero_vectors=zero_vectors,
                overwrite=overwrite,
                drop_indices=drop_indices,
                engine=opened,
                **more,
            )
        return self

    def sample(
        self,
        output: PathLike,
        share: float | None = None,
        images: str = "",
        model: Model | PathLike | None = None,
        *,
        rows: int | None = None,
        column: str = "embedding_new",
        seed: int = 0,
        backfilled: str = "",
        sources: PathLike = "",
        data_dir: str = "",
        overwrite: bool = False,
        drop_indices: bool = False,
        engine: EngineName = "local",
        spark_master: str = "",
    ) -> "Gallery":
        """Draws rows into a gallery of their own, re-embedded by the new model if it is given.

        Args:
          output: path of the new gallery: ids, labels and stored columns of the drawn rows.
          share: of the rows, such as 0.2; or their number, `rows`.
          images, model: read and embed the images of these rows, as `embed`; none for the rows
            alone, to which `import_embeddings` or `add_column` adds the new model's column.
          column: name of the new model's column.
          seed, backfilled, sources, data_dir, overwrite, drop_indices: as the flags of
            `sample_gallery`.
          engine: `spark` to embed on a cluster: the session there is, or one on `spark_master`.

        Raises:
          InputError: an existing output, a size that does not fit, a row without image.
        """
        from fct_tf.upgrade import reembed_sample

        path, more = described(model) if model is not None else ("", {})
        with open_engine(engine, spark_master) as opened:
            made = reembed_sample.sample_gallery(
                self.uri,
                os.fspath(output),
                share=share,
                rows=rows,
                images=images,
                model=path,
                column=column,
                seed=seed,
                backfilled=backfilled,
                sources=uri_of(sources),
                data_dir=data_dir,
                overwrite=overwrite,
                drop_indices=drop_indices,
                engine=opened,
                **more,
            )
        return Gallery(made)

    def upgrade(
        self,
        transformation: Transformation | PathLike,
        column: str,
        output: PathLike | None = None,
        pairs: GalleryLike | None = None,
        dry_run: bool = False,
        *,
        side: Literal["gallery", "query"] = "gallery",
        source: str = "",
        side_info: str = "",
        target: str = "",
        missing: bool = False,
        tag: str = "",
        batch_size: int = 8192,
        overwrite: bool = False,
        drop_indices: bool = False,
        allow_space_mismatch: bool = False,
        job_dir: PathLike | None = None,
        engine: EngineName = "local",
        spark_master: str = "",
    ) -> "Gallery | UpgradePlan":
        """Runs a transformation over the rows: a new column, without reading an image.

        Args:
          transformation: or the path of a SavedModel or of a training's working directory.
          column: name of the new column. Beside it come `<column>_origin` and, of FastFill,
            `<column>_log_variance`.
          output: path of a new gallery for the column; None to add it here.
          pairs: a gallery of rows that the new model has embedded: taken from there.
          dry_run: change nothing; returns a plan (rows, bytes, estimated time, free disk) that
            prints as text.
          side: of a fused search, `query` makes its queries, of both models' columns.
          source, side_info, target: columns to read; by default found by their spaces.
          missing: only the rows that an existing column lacks.
          tag: let this tag point to the new version.
          overwrite: replace a column, or a gallery `output`.
          batch_size, drop_indices, allow_space_mismatch, job_dir: as the flags of
            `upgrade_gallery`.
          engine: `spark` to run it on a cluster: the session there is, or one on `spark_master`.

        Returns:
          The gallery with the column: this one, or the new one at `output`.

        Raises:
          InputError: no such column, spaces that do not fit, an existing column, bad rows.
        """
        from fct_tf.upgrade.upgrade import Upgrade

        request = Upgrade(
            self._newest().path if output is None else self.uri,
            transformation.loaded if isinstance(transformation, Transformation) else transformation,
            column,
            side=side,
            source=source,
            side_info=side_info,
            target=target,
            pairs=uri_of(pairs),
            missing=missing,
            batch_size=batch_size,
            existing="overwrite" if overwrite else "refuse",
            allow_space_mismatch=allow_space_mismatch,
            output=output or "",
            tag=tag,
            job_dir=job_dir or "",
            drop_indices=drop_indices,
        )
        if dry_run:
            return request.plan()
        with open_engine(engine, spark_master) as opened:
            made = dataclasses.replace(request, engine=opened).run().gallery
        if output is not None:
            return Gallery(made)
        self._opened = made
        return self

    def judge(
        self,
        old: str,
        upgraded: str,
        new: str,
        sample: GalleryLike | None = None,
        *,
        sources: GalleryLike | None = None,
        exclude: GalleryLike | None = None,
        query_column: str = "",
        against: str = "",
        groups: str = "",
        thresholds: Sequence[float] = (),
        ks: Sequence[int] = (1, 5),
        overlap_ks: Sequence[int] = (1, 10, 100),
        bootstrap: int = 1000,
        seed: int = 0,
        max_queries: int = 2000,
        allow_space_mismatch: bool = False,
        progress: str = "",
    ) -> "Verdict":
        """Says before the switch whether an upgraded column is compatible.

        Args:
          old, upgraded, new: columns: of the old model, made from it, of the new model.
          sample: a gallery with `new`, rows matched by id; None: every row has it here.
          sources: the gallery with `old`, where `upgraded` lies in a gallery of its own.
          exclude: rows of its ids are left out: those that the transformation was trained on.
          query_column: of the sample, its rows search `upgraded`; empty: `new`, and for a fused
            column the one column in its space.
          against: another column here, searched by `new`, to compare `upgraded` with.
          groups: a column such as `camera`, or `label`: each value's queries are judged as well.
          thresholds: distances in the space of `old` (squared L2, or 1 - cosine) to be translated.
          ks, overlap_ks, bootstrap, seed, max_queries, allow_space_mismatch: as the flags of
            `verdict`.
          progress: label of the progress bars; none when empty.

        Returns:
          The verdict: `.compatible`, `.verdict`, `.sentence` (what `print` shows), `.record` with
          all numbers, `.details()` as a table, `.losing_slices`, the groups that are worse off.

        Raises:
          InputError: a missing column, spaces that do not fit, fewer than three rows.
        """
        from fct_tf.upgrade import judge

        record = judge.judge(
            self._opened,
            old,
            upgraded,
            new,
            sample=_opened(sample),
            sources=judge.open_old(self._opened, old, upgraded, uri_of(sources)),
            exclude=_opened(exclude),
            query=query_column,
            against=against,
            groups=groups,
            thresholds=thresholds,
            ks=ks,
            overlap_ks=overlap_ks,
            bootstrap=bootstrap,
            seed=seed,
            max_queries=max_queries,
            allow_space_mismatch=allow_space_mismatch,
            progress=progress,
        )
        return judge.Verdict(record)

    def backfill(
        self,
        column: str,
        model: Model | PathLike,
        images: str,
        budget: str = "5%",
        policy: str = "uncertainty",
        dry_run: bool = False,
        *,
        transformation: Transformation | PathLike = "",
        target_column: str = "",
        sources: GalleryLike | None = None,
        seed: int = 0,
        tag: str = "",
        data_dir: str = "",
        batch_size: int = 256,
        skipped: str = "",
        overwrite: bool = False,
        allow_space_mismatch: bool = False,
        job_dir: PathLike | None = None,
    ) -> "Backfilled | BackfillPlan":
        """Re-embeds rows of an upgraded column with the new model, those that gain most first.

        Args:
          column: made by `upgrade`; that of a fused search needs `transformation`, what made it.
          model, images: as `embed`; only the images of the chosen rows are read.
          budget: `1000` (rows), `5%` (of all rows) or `30min` (of embedding), of this run.
          policy: `uncertainty`, `random`, `ranks` (with `transformation`), `distance` (with
            `target_column`) or `file:PATH`.
          dry_run: change nothing; returns a plan that prints as text.
          transformation, target_column, sources, seed, tag, data_dir, batch_size, skipped,
            overwrite, allow_space_mismatch, job_dir: as the flags of `backfill_gallery`.

        Raises:
          InputError: no such column, policy or budget; a model of another space.
        """
        from fct_tf.backfill.backfill import Backfill
        from fct_tf.backfill.inputs import open_inputs

        path, more = described(model)
        made_with = str(getattr(transformation, "path", transformation))
        uri = self._newest().path
        opened = open_inputs(uri, path, images, transformation=made_with, data_dir=data_dir, **more)
        request = Backfill(
            uri,
            column,
            *opened,
            policy,
            budget,
            target_column=target_column,
            transformation=made_with,
            sources=uri_of(sources),
            seed=seed,
            batch_size=batch_size,
            allow_space_mismatch=allow_space_mismatch,
            tag=tag,
            job_dir=job_dir or "",
            skipped=skipped,
            overwrite=overwrite,
        )
        if dry_run:
            return request.plan()
        done = request.run()
        self._opened = done.gallery
        return Backfilled(self, done.embedded, done.skipped, done.report)

    def backfilling_curve(
        self,
        column: str,
        target_column: str,
        policies: Sequence[str] = ("random",),
        queries: GalleryLike | None = None,
        query_column: str = "",
        *,
        random_orders: int = 5,
        corrected: Sequence[str] = (),
        groups: str = "",
        ks: Sequence[int] = (1, 5),
        distance: str = "",
        seed: int = 0,
        allow_space_mismatch: bool = False,
        progress: str = "",
    ) -> BackfillingCurves:
        """Says what re-embedding a part of an upgraded column brings, by policy.

        Args:
          column: transformed; target_column: of the new model, whose rows replace its rows.
          policies: `uncertainty`, `random`, `distance`, `ranks`, `file:PATH`.
          queries: their gallery; None for this one. query_column: the new model's there; by
            default `target_column`.
          random_orders, corrected, groups, ks, distance, seed, allow_space_mismatch: as the flags
            of `backfilling_curve`.
          progress: label of the progress bar; none when empty.

        Raises:
          InputError: spaces that do not fit, an unknown policy, no labelled query.
        """
        from fct_tf.backfill import evaluate

        records = evaluate.evaluate(
            _opened(queries) or self._opened,
            query_column or target_column,
            self._opened,
            column,
            target_column,
            _names(policies),
            random_orders=random_orders,
            corrected=_names(corrected),
            groups=groups,
            ks=ks,
            distance=distance or None,
            seed=seed,
            allow_space_mismatch=allow_space_mismatch,
            progress=progress,
        )
        return BackfillingCurves(records)

    def evaluate(
        self,
        column: str,
        queries: GalleryLike | None = None,
        query_column: str = "",
        *,
        ks: Sequence[int] = (1, 5),
        distance: str = "",
        search: Literal["exact", "scann"] = "exact",
        index: PathLike | None = None,
        rerank: Transformation | PathLike | None = None,
        candidates: int = 100,
        target: str | None = None,
        side_info: str | None = None,
        exclude_same: str = "",
        bootstrap: int = 1000,
        seed: int = 0,
        allow_space_mismatch: bool = False,
        progress: str = "",
        engine: EngineName = "local",
        spark_master: str = "",
    ) -> Evaluation:
        """Evaluates queries against a column of this gallery; a query's own id is left out.

        Args:
          column: that is searched.
          queries: their gallery; None for this one. query_column: there; by default `column`.
          ks, distance, search, index, exclude_same, bootstrap, seed, allow_space_mismatch: as the
            flags of `evaluate`.
          rerank: a fused search that orders the first `candidates` rows of each query; `column`
            and `query_column` are the old model's.
          target, side_info: what it reads beside them, the new model's column of the queries and
            the gallery's side-information; by default found by their spaces.
          progress: label of the progress bar; none when empty.
          engine: `spark` to search on a cluster: the session there is, or one on `spark_master`.

        Returns:
          `.cmc[1]`, `.map`, `.record` (of results.json), `.per_query`, `.by_class()`.

        Raises:
          InputError: spaces that do not fit, no labelled query, bad rows.
        """
        from fct_tf.upgrade.rerank import searching

        asked = _opened(queries) or self._opened
        fused: Any = getattr(rerank, "loaded", rerank)
        approximate = searching(
            (asked, query_column or column, self._opened, column),
            search=search,
            index=os.fspath(index or ""),
            transformation=fused or "",
            first=candidates,
            target=target or "",
            side_info=side_info or "",
        )
        with open_engine(engine, spark_master) as opened:
            made = exact.evaluate_queries(
                asked,
                query_column or column,
                self._opened,
                column,
                ks=ks,
                distance=distance or None,
                approximate=approximate,
                exclude_same=exclude_same,
                bootstrap=bootstrap,
                seed=seed,
                allow_space_mismatch=allow_space_mismatch,
                progress=progress,
                searching=None if engine == "local" else in_parts.searching(opened),
            )
        return Evaluation(*made)

    def search(
        self,
        vectors: Any,
        column: str,
        k: int = 10,
        method: Literal["exact", "scann"] = "exact",
        *,
        index: PathLike | None = None,
        distance: str = "",
        rerank: Transformation | PathLike | None = None,
        target_vectors: Any = None,
        candidates: int = 100,
    ) -> Neighbours:
        """The k nearest rows of each query.

        A search of the old model's column or index gets what a fused search finds by ordering its
        first rows, with nothing stored:

            gallery.search(old, "embedding_old", rerank=fused, target_vectors=new)

        Args:
          vectors: float [q, d], of the space of `column` or of one that fits it; or one, [d].
          column: that is searched.
          k: number of neighbours.
          method: `exact`, or `scann` by an `index` that `build_index` made of this column.
          distance: `l2` or `cosine`; by default the column's.
          rerank: a fused search that orders the first `candidates` rows; the distances returned
            are its own.
          target_vectors: float [q, d_target], or one, [d_target]: with `rerank`, the same queries
            embedded by the new model.
          candidates: with `rerank`, how many rows to order, at least k.

        Raises:
          InputError: an unknown column, other dimensions, NaN or infinity, k below 1; no fused
            search, or one that reads another column than this.
        """
        if rerank is None:
            if target_vectors is not None:
                raise InputError("target_vectors: goes with rerank; leave it out")
            return nearest(self._opened, vectors, column, k, method, index, distance)
        if k > candidates:
            raise InputError(f"candidates={candidates}: must be at least k={k}")
        first = nearest(self._opened, vectors, column, candidates, method, index, distance)
        fused = rerank if isinstance(rerank, Transformation) else Transformation.load(rerank)
        sides = (vectors, target_vectors)
        return reranked(self._opened, fused.loaded, sides, column, first.ids, k)

    def build_index(
        self,
        column: str,
        output: PathLike,
        *,
        recall: float | None = None,
        threads: int | None = None,
        overwrite: bool = False,
        seed: int = 0,
        progress: str = "",
        **settings: Any,
    ) -> "Index":
        """Builds the ScaNN index of a column, for `search`.

        Args:
          column: an embedding column.
          output: directory to make.
          recall: find the settings of most queries per second at this recall@10.
          threads: that build; None: one for each core.
          overwrite: replace an index there.
          seed: of the search for settings.
          progress: label of the progress bar; none when empty.
          **settings: of ScaNN by their names, such as `num_leaves`; the others by number of rows.

        Raises:
          InputError: see `fct_tf.ann.index.build`.
        """
        from fct_tf.ann.index import build

        return build(
            self._opened,
            column,
            os.fspath(output),
            settings,
            recall=recall,
            threads=threads,
            overwrite=overwrite,
            seed=seed,
            progress=progress,
        )

    def _newest(self) -> reader.Gallery:
        """As it is now, to be changed; refuses an older version that was asked for."""
        table.check_newest(self._opened)
        return reader.open_gallery(self.path)


def _names(columns: str | Sequence[str]) -> list[str]:
    return [columns] if isinstance(columns, str) else list(columns)


def _opened(gallery: GalleryLike | None) -> reader.Gallery | None:
    if isinstance(gallery, Gallery):
        return gallery._opened
    return None if gallery is None else reader.open_gallery(uri_of(gallery))
