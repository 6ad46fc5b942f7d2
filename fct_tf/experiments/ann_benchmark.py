"""What benchmark_scann runs: a sweep of settings, or the cases of a change, into a directory."""

import dataclasses
import functools
from pathlib import Path

from absl import flags

from fct_tf.ann import across, peers, sweep
from fct_tf.ann import benchmark_flags as told
from fct_tf.ann.reranked import Rerank
from fct_tf.common import files, runs
from fct_tf.common.errors import InputError
from fct_tf.gallery.columns import Column
from fct_tf.gallery.reader import open_gallery
from fct_tf.models import info as infos
from fct_tf.report import ann_across, ann_benchmark
from fct_tf.upgrade import rerank


def sweep_settings(values: flags.FlagValues, at: Path) -> None:
    """Sweeps settings of libraries, as the flags say; goes on with what was stopped.

    Raises:
      InputError: flags that do not go together, results that are there, another process at work.
    """
    libraries, given = told.libraries(values.libraries), told.settings(values)
    ks = told.ranks(values, "ks")
    files.refuse_existing(at / ann_benchmark.OUTPUT, values.overwrite)
    data, threads = told.data(values), values.threads or peers.cores()
    num_rows, dim = data.rows.shape
    builds = sweep.plan(libraries, num_rows, dim, values.k, given)
    measuring = sweep.Measuring(values.k, ks, threads, values.rounds, values.seconds)
    most = measuring.most(data)
    about = {"data": sweep.describe(data), **dataclasses.asdict(measuring), "ks": list(ks)}
    makes = (sweep.JOURNAL, sweep.WORK, *ann_benchmark.MAKES)
    with runs.locked(at, f"``output={at}``"):
        if values.overwrite and (at / runs.SETTINGS).exists():
            for name in makes:
                runs.remove(at / name)
        existing: runs.Existing = "overwrite" if values.overwrite else "refuse"
        runs.begin(at, at / ann_benchmark.OUTPUT, about, existing, makes=makes)
        results = values.ann_benchmarks or None
        if results and not values.hdf5:
            data = told.publish(data, most, results)
        measured = sweep.run(data, builds, at, measuring, results=results, progress="benchmark")
        print(ann_benchmark.write(at, about, *measured))


def across_change(values: flags.FlagValues, at: Path) -> None:
    """Measures the cases of a change of the model, as the flags say. Errors as before."""
    cases, shares = told.cases(values), told.shares(values)
    ks, cmc = told.ranks(values, "ks"), told.ranks(values, "cmc", empty=True)
    files.refuse_existing(at / ann_across.OUTPUT, values.overwrite)
    cases = _with_rerank(values, cases)
    queries, rows, distance = told.case_rows(values, cases)
    dim = rows.vectors[cases[0].gallery].shape[1]
    settings = told.one_build(values, len(rows), dim, distance)
    threads = values.threads or peers.cores()
    measuring = across.Measuring(values.k, ks, cmc, threads, values.rounds, values.seconds)
    about = {
        "gallery": Path(values.gallery).name,
        "num_rows": len(rows),
        "dim": dim,
        "distance": distance,
        "num_queries": len(queries),
        "seed": values.seed,
        **dataclasses.asdict(measuring),
    }
    with runs.locked(at, f"``output={at}``"):
        files.refuse_existing(at / ann_across.OUTPUT, values.overwrite)
        records = across.measure(
            *(queries, rows, cases, distance),
            shares=shares,
            settings=settings,
            measuring=measuring,
            seed=values.seed,
            progress="across",
        )
        print(ann_across.write(at, about, records))


def by_old_index(case: across.Case, how: rerank.Reranking) -> across.Case:
    """The case of a fused search, to be measured by the old model's index too."""
    asked = how.query_sources
    return dataclasses.replace(
        case,
        rerank=Rerank(
            functools.partial(rerank.rerank, how.model),
            (asked["source_embedding"].name, asked["target_embedding"].name),
            tuple(column.name for column in how.sources.values()),
            how.first,
        ),
    )


def _with_rerank(values: flags.FlagValues, cases: list[across.Case]) -> list[across.Case]:
    """Those of the fused search of --transformation are measured by the old model's index too."""
    if not values.rerank:
        return cases
    from fct_tf.models import saved_model

    gallery = told.gallery(values)
    queries = open_gallery(values.query) if values.query else gallery
    model = saved_model.load_transformation(values.transformation)
    infos.check_fused(model.info, str(model.path), "``rerank``")
    fused = [case for case in cases if _made_by(gallery.column(case.gallery), model.info["space"])]
    if not fused:
        raise InputError(
            f"``transformation={values.transformation}``: made the rows of none of ``cases``; "
            "name the column that upgrade_gallery makes by it"
        )
    source = model.info["source_space"]
    of_old = [
        case
        for case in cases
        if values.allow_space_mismatch
        or _lies_in(queries.column(case.query), source)
        and _lies_in(gallery.column(case.gallery), source)
    ]
    if not of_old:
        raise InputError(
            f"``cases={','.join(values.cases)}``: none has queries and rows of the old model, "
            "which ``transformation`` reads; begin with these"
        )
    how = rerank.reranking(
        *(model, values.rerank, queries, of_old[0].query, gallery, of_old[0].gallery),
        target=values.target,
        side_info=values.side_info,
        allow_space_mismatch=values.allow_space_mismatch,
    )
    return [by_old_index(case, how) if case in fused else case for case in cases]


def _lies_in(column: Column, space: str) -> bool:
    return space in (column.space, *column.compatible_with)


def _made_by(column: Column, transformation: str) -> bool:
    """Whether a transformation made a column of rows, not of queries."""
    settings = column.created_by.get("settings")
    return (
        column.kind == "fused"
        and isinstance(settings, dict)
        and settings.get("transformation") == transformation
        and settings.get("side") != "query"
    )
