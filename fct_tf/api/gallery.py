"""A gallery with all that can be done to it."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from fct_tf.api import changes, judging
from fct_tf.api import search as searching
from fct_tf.api.arguments import EngineName, PathLike, names
from fct_tf.common import stores
from fct_tf.common.annotations import checked_methods
from fct_tf.engines.engine import open_engine
from fct_tf.gallery import describe, reader, table, verify
from fct_tf.gallery.columns import Column, Rows


@checked_methods
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
    def open(
        cls, uri: PathLike, storage_options: Mapping[str, Any] | PathLike | None = None
    ) -> "Gallery":
        """Opens `photos.lance` (the newest version), `photos.lance@7` or `photos.lance@live`.

        Args:
          uri: a path, or one in an object store such as `s3://bucket/photos.lance`.
          storage_options: of the bucket, from now on in this process: options by Lance's names
            (`aws_endpoint`, `aws_access_key_id`, ..), or a JSON file of them. None for what
            FCT_TF_STORAGE_OPTIONS names and the environment says.

        Raises:
          InputError: no such gallery, version or tag; a store that cannot be opened.
        """
        if storage_options is not None:
            stores.use(storage_options, uri)
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
        return self._opened.read(names(columns), with_labels=True, fields=fields)

    def batches(
        self,
        columns: str | Sequence[str],
        batch_size: int = 8192,
        *,
        fields: Sequence[str] = (),
    ) -> Iterator[Rows]:
        """The rows in the table's order, at most `batch_size` at a time; otherwise as `read`."""
        return self._opened.batches(names(columns), batch_size, with_labels=True, fields=fields)

    def take(
        self,
        ids: Sequence[str],
        columns: str | Sequence[str] | None = None,
        *,
        fields: Sequence[str] = (),
    ) -> Rows:
        """The rows with these ids, in that order; `columns` None for all. Otherwise as `read`."""
        read = list(self._opened.columns) if columns is None else names(columns)
        return self._opened.take(ids, read, fields=fields)

    # These stand in the modules beside, by what they are for.
    add_column = changes.add_column

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

    import_embeddings = changes.import_embeddings
    embed = changes.embed
    sample = changes.sample
    upgrade = changes.upgrade
    judge = judging.judge
    backfill = changes.backfill
    backfilling_curve = judging.backfilling_curve
    evaluate = judging.evaluate
    search = searching.search
    build_index = searching.build_index

    def _newest(self) -> reader.Gallery:
        """As it is now, to be changed; refuses an older version that was asked for."""
        table.check_newest(self._opened)
        return reader.open_gallery(self.path)
