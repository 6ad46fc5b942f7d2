"""What the flags of benchmark_scann say: rows and queries, libraries and their settings."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from absl import flags

from fct_tf.ann import across, benchmark, benchmark_data, hdf5, peers
from fct_tf.ann.benchmark_data import Data
from fct_tf.ann.settings import Settings
from fct_tf.common import cli
from fct_tf.common.errors import InputError
from fct_tf.gallery.columns import Rows
from fct_tf.gallery.reader import Gallery, open_gallery

# Lists of ScaNN's settings; text, as they come from the command line, to values.
SCANN = {
    "num_leaves": (int, "Leaves of the partition; 0: none."),
    "num_leaves_to_search": (int, "Leaves searched for a query."),
    "dimensions_per_block": (int, "Dimensions of a code."),
    "anisotropic_quantization_threshold": (
        float,
        "Threshold of anisotropic codes; none: isotropic ones.",
    ),
    "reordering_num_neighbors": (int, "Rows that get their distance from --reordering_data."),
    "reordering_data": (str, "Number format for reordering: float32, bfloat16, int8."),
}
PEERS = [name for name in peers.LIBRARIES if name not in ("scann", "exact", "faiss_flat")]


def data(values: flags.FlagValues) -> Data:
    """Rows and queries of a gallery, or of a file."""
    if bool(values.hdf5) == bool(values.gallery):
        raise InputError("give --gallery with --column, or --hdf5")
    count = values.num_queries
    if values.hdf5:
        for name in ("column", "query", "query_column", "distance"):
            if values[name].value:
                raise InputError(f"--{name} goes with --gallery; leave it out beside --hdf5")
        return hdf5.read(values.hdf5).first(max(count, 0))
    if not values.column:
        raise InputError("--gallery needs --column, the embedding column that is searched")
    return benchmark_data.of_gallery(
        open_gallery(values.gallery),
        values.column,
        open_gallery(values.query) if values.query else None,
        values.query_column,
        num_queries=1000 if count < 0 else count,
        distance=values.distance,
        seed=values.seed,
        allow_space_mismatch=values.allow_space_mismatch,
    )


def publish(data: Data, most: int, directory: str) -> Data:
    """Writes the data set of a gallery: ann-benchmarks compares results with its distances."""
    k = min(len(data.rows), max(100, most))
    truth = benchmark.Truth.of(data.rows, data.queries, data.distance, k)
    data = replace(data, neighbors=truth.neighbors, numbers=None)
    hdf5.write(Path(directory) / "data" / f"{data.name}.hdf5", data, truth.distances)
    return data


def libraries(asked: Sequence[str]) -> list[str]:
    """Those asked for, or all that are installed."""
    for name in asked:
        if name not in peers.LIBRARIES:
            near = cli.nearest(name, list(peers.LIBRARIES))
            raise InputError(f"--libraries: {name!r} is none of {', '.join(peers.LIBRARIES)}{near}")
        if not peers.LIBRARIES[name].installed:
            raise InputError(
                f"--libraries: {name} is not installed: {peers.LIBRARIES[name].install}"
            )
    return list(dict.fromkeys(asked)) or [
        name for name, library in peers.LIBRARIES.items() if library.installed
    ]


def settings(values: flags.FlagValues) -> dict[str, dict[str, list]]:
    """Lists of settings by library, of those flags that are given."""
    texts = {name: getattr(values, name) for name in (*SCANN, *PEERS)}
    given: dict[str, dict[str, list]] = {"scann": {}}
    for name, (kind, _) in SCANN.items():
        if texts[name]:
            given["scann"][name] = numbers(f"--{name}", texts[name], kind)
    for library in PEERS:
        given[library] = {}
        for part in filter(None, texts[library].split(";")):
            name, equals, listed = part.partition("=")
            if not equals or not listed:
                raise InputError(f"--{library}={part}: write name=value,value;name=value")
            kind = float if name.strip() == "k_factor" else int
            given[library][name.strip()] = numbers(f"--{library}", listed.split(","), kind)
    return given


def numbers(flag: str, texts: Sequence[str], kind: type) -> list:
    """The values of a list, each once."""
    try:
        parsed = [
            None if kind is float and text.strip() == "none" else kind(text.strip())
            for text in texts
        ]
    except ValueError:
        expected = "whole numbers" if kind is int else "numbers"
        raise InputError(f"{flag}={','.join(texts)}: must be {expected}") from None
    if any(isinstance(value, (int, float)) and not 0 <= value < 2**31 for value in parsed):
        raise InputError(f"{flag}={','.join(texts)}: numbers from 0 on")
    return list(dict.fromkeys(parsed))


def cases(values: flags.FlagValues) -> list[across.Case]:
    """Those of --cases."""
    if bool(values.rerank) != bool(values.transformation):
        raise InputError("--rerank, --transformation: go together; give both or none")
    for name in ("target", "side_info"):
        if values[name].value and not values.rerank:
            raise InputError(f"--{name}: goes with --rerank; leave it out")
    for name in ("column", "query_column", "hdf5", "libraries", "ann_benchmarks", *PEERS):
        if values[name].value:
            raise InputError(f"--{name}: goes with a sweep; leave it or --cases out")
    parsed = []
    for text in values.cases:
        query, colon, gallery = text.strip().partition(":")
        if not colon or not query or not gallery:
            raise InputError(f"--cases={text}: write QUERY_COLUMN:GALLERY_COLUMN")
        names = (name.removeprefix("embedding_") for name in (query, gallery))
        parsed.append(across.Case("/".join(names), query, gallery))
    across.states(parsed, shares(values))
    return parsed


def shares(values: flags.FlagValues) -> list[float]:
    """Those of --backfilled."""
    return numbers("--backfilled", values.backfilled, float)


def ranks(values: flags.FlagValues, name: str, *, empty: bool = False) -> tuple[int, ...]:
    """Those of --ks or --cmc, ascending; none only where that is allowed."""
    ks = tuple(sorted(set(numbers(f"--{name}", getattr(values, name), int))))
    if ks and ks[0] < 1 or not ks and not empty:
        raise InputError(f"--{name}={','.join(getattr(values, name))}: ranks start at 1")
    return ks


def gallery(values: flags.FlagValues) -> Gallery:
    """That of --cases."""
    if not values.gallery:
        raise InputError("--cases needs --gallery, which has their columns")
    return open_gallery(values.gallery)


def case_rows(values: flags.FlagValues, asked: Sequence[across.Case]) -> tuple[Rows, Rows, str]:
    """Queries, rows and distance of cases."""
    return benchmark_data.of_cases(
        gallery(values),
        asked,
        open_gallery(values.query) if values.query else None,
        num_queries=1000 if values.num_queries < 0 else values.num_queries,
        distance=values.distance,
        seed=values.seed,
        allow_space_mismatch=values.allow_space_mismatch,
    )


def one_build(values: flags.FlagValues, num_rows: int, dim: int, distance: str) -> Settings | None:
    """The settings of ScaNN for cases: one value of each; None where none is given."""
    given = settings(values)["scann"]
    for name, listed in given.items():
        if len(listed) > 1:
            raise InputError(f"--{name}: one value with --cases")
    chosen = {name: listed[0] for name, listed in given.items()}
    return Settings.for_rows(num_rows, dim, distance, **chosen) if chosen else None
