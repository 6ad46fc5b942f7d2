"""Approximate search through a change of the model: its cases, its numbers, its report."""

import functools
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest

import fct_tf
from fct_tf import benchmark_scann
from fct_tf.ann import across, benchmark_data
from fct_tf.ann.across import Case, Measuring
from fct_tf.ann.reranked import Rerank
from fct_tf.ann.settings import Settings
from fct_tf.common import runs
from fct_tf.common.errors import InputError
from fct_tf.gallery import table
from fct_tf.gallery.columns import Rows
from fct_tf.report import ann_across
from fct_tf.retrieval import exact, metrics
from fct_tf.training.by_method import train_by_method
from fct_tf.upgrade import rerank
from tests.models.test_fusion import ROWS, make_gallery

COUNT, DIM = 307, 6
FAST = Measuring(k=5, ks=(1, 5, 11), cmc=(1, 3), threads=2, rounds=1, seconds=0.0)
# All leaves are searched and all rows reordered, so that answers equal exact ones.
COMPLETE = Settings(
    num_leaves=4, num_leaves_to_search=4, reordering_num_neighbors=COUNT, dimensions_per_block=2
)
OLD, UPGRADED, NEW = (
    Case("old/old", "old", "old"),
    Case("new/T(old)", "new", "upgraded"),
    Case("new/new", "new", "new"),
)


def sides(labelled=True):
    """Rows of classes, seen by two models and through a map between them."""
    rng = np.random.default_rng(0)
    classes = np.arange(COUNT) % 9
    hidden = rng.normal(size=(9, DIM))[classes] + 0.7 * rng.normal(size=(COUNT, DIM))
    vectors = {
        "old": np.roll(hidden, 1, axis=1) + 0.5 * rng.normal(size=hidden.shape),
        "upgraded": hidden + 0.5 * rng.normal(size=hidden.shape),
        "new": hidden,
        "fused": hidden + 0.2 * rng.normal(size=hidden.shape),
    }
    ids = np.array([f"row{row}" for row in range(COUNT)], object)
    labels = np.array([f"c{name}" for name in classes], object) if labelled else None
    return Rows(ids, labels, {name: value.astype(np.float32) for name, value in vectors.items()})


@pytest.mark.parametrize("cases, shares, expected", [
    ([OLD], (0.5,), ["old/old"]),
    ([OLD, NEW], (0.5,), ["old/old", "new/new"]),
    (
        [OLD, UPGRADED, NEW],
        (0.2, 0.5),
        [
            *("old/old", "new/T(old)", "new/T(old), 20 % backfilled +"),
            *("new/T(old), 50 % backfilled +", "new/new +"),
        ],
    ),
    ([UPGRADED, NEW], (), ["new/T(old)", "new/new +"]),
    (
        # A fused column, and queries of an upgraded one.
        [Case("new/fused", "new", "fused"), NEW, Case("T(new)/old", "down", "old")],
        (0.125,),
        ["new/fused", "new/fused, 12.5 % backfilled +", "new/new +", "T(new)/old"],
    ),
])  # fmt: skip
def test_cases_of_the_same_queries_are_backfilled_one_into_the_next(cases, shares, expected):
    planned = across.states(cases, shares)
    assert [state.name + " +" * state.goes_on for state in planned] == expected


def brute(rows, query, gallery, k, distance):
    """The nearest other rows, int [q, k], in float64."""
    a, b = (np.asarray(side, np.float64) for side in (rows.vectors[query], gallery))
    if distance == "cosine":
        a, b = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (a, b))
    apart = ((a[:, None] - b[None]) ** 2).sum(axis=2)
    np.fill_diagonal(apart, np.inf)
    return np.argsort(apart, axis=1)[:, :k]


@pytest.mark.parametrize("distance", ["l2", "cosine"])
@pytest.mark.parametrize("middle", ["upgraded", "fused"])
def test_an_index_that_searches_everything_tells_what_exact_search_does(distance, middle):
    rows = sides()
    cases = [OLD, Case("new/other", "new", middle), NEW]
    records = across.measure(
        *(rows, rows, cases, distance),
        shares=(0.2, 0.5),
        settings=COMPLETE,
        measuring=FAST,
        seed=3,
    )
    assert [(one["case"].split(", ")[-1], one["index"]) for one in records] == [
        ("old/old", "built"),
        ("new/other", "built"),
        *(("20 % backfilled", "built"), ("20 % backfilled", "kept")),
        *(("50 % backfilled", "built"), ("50 % backfilled", "kept")),
        *(("new/new", "built"), ("new/new", "kept")),
    ]
    assert [one["rows_changed"] for one in records if one["index"] == "kept"] == [61, 154, 307]
    order = np.random.default_rng(3).permutation(COUNT)
    goal = brute(rows, "new", rows.vectors["new"], 11, distance)
    for one in records:
        gallery = rows.vectors[one["gallery"]].copy()
        if one["target"]:
            put = order[: round(one["backfilled"] * COUNT)]
            gallery[put] = rows.vectors[one["target"]][put]
        near = brute(rows, one["query"], gallery, 11, distance)
        assert one["recall"] == {"1": 1, "5": 1, "11": 1}
        for k in FAST.ks:
            same = [len({*a[:k]} & {*b[:k]}) / k for a, b in zip(near, goal, strict=True)]
            for name in ("recall_of_last", "exact_recall_of_last"):
                assert one[name][str(k)] == pytest.approx(np.mean(same), abs=1e-6), name
        side = (rows.ids, rows.labels)
        told = exact.per_query(rows.vectors[one["query"]], *side, gallery, *side, distance)
        assert one["cmc"] == one["exact_cmc"] == pytest.approx(metrics.cmc(told.rank, (1, 3)))
        assert one["seconds"] > 0 and one["latency_ms"]["p50"] <= one["latency_ms"]["p95"]
        assert one["exact_qps"].keys() == {"batched", "parallel"} and min(one["exact_qps"].values())
        assert one["settings"]["num_leaves"] == 4
    # What upserts take adds up.
    spent = [one["seconds"] for one in records if one["index"] == "kept"]
    assert spent == sorted(spent)


def both(*sides):
    """A fused row of two embeddings."""
    return np.concatenate(sides, axis=1)


def fused_search(side_info):
    """One in NumPy: a map, and both embeddings side by side."""
    reads = ["source_embedding"] + ["side_info"] * side_info

    def rows(old, *side):
        return {"embedding": both(old, np.roll(old, -1, axis=1) + sum(side))}

    class Model(SimpleNamespace):
        def __call__(self, *inputs):
            return self.makes(*inputs)

    dims = {**dict.fromkeys(reads, DIM), "embedding": 2 * DIM}
    queries = Model(dims=dims, makes=lambda old, new: {"embedding": both(old, new)})
    info = {"distance": "l2"}
    return Model(dims=dims, makes=rows, info=info, query_side=lambda: queries)


@pytest.mark.parametrize("distance", ["l2", "cosine"])
@pytest.mark.parametrize("side_info, own, first", [
    (False, True, 20), (True, False, 20), (False, True, 400), (False, False, COUNT)
])  # fmt: skip
def test_the_old_index_finds_what_a_fused_search_orders(distance, side_info, own, first):
    """Of all rows it is the search of the fused column; of fewer, of what the old model finds."""
    rows, model = sides(), fused_search(side_info)
    vectors = rows.vectors
    vectors["side"] = np.roll(vectors["upgraded"], 3, axis=0) / 9
    stored = ("old", "side")[: 1 + side_info]
    vectors["fused"] = model(*(vectors[name] for name in stored))["embedding"]
    vectors["asked"] = both(vectors["old"], vectors["new"])
    queries = rows if own else Rows(rows.ids + "?", rows.labels, vectors)
    how = Rerank(functools.partial(rerank.rerank, model), ("old", "new"), stored, first)
    cases = [OLD, Case("fused", "asked", "fused", how), Case("both", "asked", "asked")]
    records = across.measure(
        *(queries, rows, cases, distance), shares=(0.5,), settings=COMPLETE, measuring=FAST
    )
    built = {"case": "fused, 50 % backfilled"}
    assert [(one["case"], one["index"]) for one in records] == [
        *(("old/old", "built"), ("fused", "built"), ("fused", "reranked")),
        *((built["case"], "built"), (built["case"], "kept"), ("both", "built"), ("both", "kept")),
    ]
    one, old = records[2], records[0]
    assert (one["rows_changed"], one["seconds"], one["cpu_seconds"]) == (0, 0, 0)
    assert (one["rerank"], one["bytes"], one["settings"]) == (first, old["bytes"], old["settings"])
    assert "rerank" not in records[1] and old["bytes"] < records[1]["bytes"]

    def apart(query, gallery):
        a, b = (np.asarray(vectors[name], np.float64) for name in (query, gallery))
        if distance == "cosine":
            a, b = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (a, b))
        found = ((a[:, None] - b[None]) ** 2).sum(axis=2)
        if own:
            np.fill_diagonal(found, np.inf)
        return found

    fused, old = apart("asked", "fused"), apart("old", "old")
    near = np.argsort(old, axis=1)[:, : min(first, COUNT - own)]
    order = np.argsort(np.take_along_axis(fused, near, axis=1), axis=1)
    order = np.take_along_axis(near, order, axis=1)
    true = np.argsort(fused, axis=1)
    for k in FAST.ks:
        same = [len({*a[:k]} & {*b[:k]}) / k for a, b in zip(order, true, strict=True)]
        assert one["recall"][str(k)] == pytest.approx(np.mean(same), abs=1e-6)
    assert (one["recall"]["11"] == 1) == (first >= COUNT)
    match = rows.labels[order] == rows.labels[:, None]
    for k in FAST.cmc:
        assert one["cmc"][str(k)] == pytest.approx(match[:, :k].any(axis=1).mean())
    assert one["exact_cmc"] == records[1]["exact_cmc"]
    assert one["cmc"] == one["exact_cmc"] or first < COUNT
    told = ann_across.table(records)
    assert [line[1] for line in told.lines].count("old, re-ranked") == 1


@pytest.mark.parametrize("labelled, cmc", [(False, (1,)), (True, ())])
def test_an_index_that_searches_little_loses_what_it_says(labelled, cmc):
    """Fewer leaves lose recall of both kinds; without labels, or ranks, there is no CMC."""
    rows = sides(labelled)
    queries = Rows(np.array(["other"] * 50, object), None, {"new": rows.vectors["new"][:50] + 0.01})
    poor = Settings(num_leaves=30, num_leaves_to_search=1, reordering_num_neighbors=COUNT)
    measuring = Measuring(k=5, ks=(1, 5), cmc=cmc, rounds=1, seconds=0.0)
    found = across.measure(
        queries, rows, [UPGRADED, NEW], "l2", shares=(), settings=poor, measuring=measuring
    )
    for one in found:
        assert one["recall"]["5"] < 1 and one["cmc"] is one["exact_cmc"] is None
        assert one["recall_of_last"]["5"] <= one["exact_recall_of_last"]["5"]
    assert found[1]["exact_recall_of_last"]["5"] == 1  # The last case itself.
    assert "CMC" not in " ".join(ann_across.table(found).header)


def test_rows_without_direction_are_left_out_of_all_cases(caplog):
    rows = sides()
    rows.vectors["new"][7], rows.vectors["upgraded"][9] = 0, 0
    found = across.measure(
        *(rows, rows, [UPGRADED, NEW], "cosine"), shares=(), settings=COMPLETE, measuring=FAST
    )
    assert [one["rows_changed"] for one in found] == [305] * 3 and "left out" in caplog.text


@pytest.mark.parametrize("cases, settings, message", [
    ([], {}, "cases: one or more, each once"),
    ([NEW, UPGRADED, Case("again", "new", "new")], {}, "cases: one or more, each once"),
    ([NEW], {"shares": (0.5, 0.2)}, "backfilled=0.5,0.2: rising shares"),
    ([NEW], {"shares": (0.0,)}, "backfilled=0: rising shares"),
    ([NEW], {"shares": (0.5, 1.0)}, "backfilled=0.5,1: rising shares"),
    ([NEW], {"measuring": Measuring(ks=(307,))}, "307 rows have no 307 neighbours"),
    (
        [UPGRADED, NEW],
        {"settings": Settings(4, 4, reordering_num_neighbors=9, reordering_data="int8")},
        "cannot change rows under these settings",
    ),
])  # fmt: skip
def test_what_cannot_be_measured_is_refused(cases, settings, message):
    rows = sides()
    with pytest.raises(InputError, match=message):
        across.measure(rows, rows, cases, "l2", **{"measuring": FAST, **settings})


@pytest.fixture
def gallery(tmp_path):
    rows = sides()
    columns = [
        table.Column(name, DIM, table.imported_space(space), created_by={"model": space})
        for name, space in (("old", "m1"), ("upgraded", "m2"), ("new", "m2"), ("fused", "m2"))
    ]
    table.create(tmp_path / "g.lance", [rows], columns)
    return tmp_path / "g.lance"


CASES = "--cases=old:old,new:upgraded,new:new"
QUICK = ["--rounds=1", "--seconds=0", "--ks=1,5", "--k=5"]


def test_the_command(gallery, tmp_path, run_door, capsys):
    flags = [f"--gallery={gallery}", f"--output={tmp_path / 'o'}", *QUICK, "--backfilled=0.25"]
    assert run_door(benchmark_scann, *flags, CASES, "--num_queries=40", "--seed=5") == 0
    shown = capsys.readouterr().out
    document = json.loads((tmp_path / "o" / "across.json").read_text())
    assert document["num_queries"] == 40 and document["num_rows"] == COUNT
    told = [(one["case"], one["index"]) for one in document["records"]]
    assert told[2:4] == [("new/upgraded, 25 % backfilled", name) for name in ("built", "kept")]
    assert all(one["recall"] == {"1": 1, "5": 1} for one in document["records"])  # Few rows.
    written = (tmp_path / "o" / "across.md").read_text()
    made = ann_across.table(document["records"])
    tables = written.split("\n\n")[:2]
    assert [one.count("\n|") for one in tables] == [
        len(made.lines) + 1
    ] * 2 and "new/upgraded" in shown
    titles = [set(one.split("\n")[0].strip("| ").split(" | ")) for one in tables]
    assert titles[0] | titles[1] == set(made.header), "each column is in one of the tables"
    assert titles[0] & titles[1] == {"case", "index"}
    assert ann_across.markdown(document) == "\n\n".join(tables)
    drawn = (tmp_path / "o" / "across.svg").read_text()
    assert "recall@5 of last" in drawn and "kept, upserted" in drawn
    assert run_door(benchmark_scann, *flags, CASES) == 2
    assert "pass --overwrite" in capsys.readouterr().err
    # Queries of their own, by any column of the same space.
    assert run_door(
        *(benchmark_scann, *flags, f"--query={gallery}", "--overwrite", "--cmc="),
        *("--cases=new:fused,new:new", "--num_leaves=4", "--num_leaves_to_search=4"),
    ) == 0  # fmt: skip
    document = json.loads((tmp_path / "o" / "across.json").read_text())
    assert document["num_queries"] == COUNT and document["records"][0]["cmc"] is None
    assert document["records"][0]["settings"]["num_leaves"] == 4


@pytest.mark.parametrize("flags, message", [
    (["--cases=old"], "--cases=old: write QUERY_COLUMN:GALLERY_COLUMN"),
    (["--cases=:old"], "--cases=:old: write QUERY_COLUMN:GALLERY_COLUMN"),
    (["--cases=old:none"], "no embedding column 'none'"),
    (["--cases=new:old"], "--allow_space_mismatch"),
    ([CASES, "--backfilled=0.5,x"], "--backfilled=0.5,x: must be numbers"),
    ([CASES, "--backfilled=1"], "backfilled=1: rising shares"),
    ([CASES, "--cmc=0"], "--cmc=0: ranks start at 1"),
    ([CASES, "--column=new"], "--column: goes with a sweep; leave it or --cases out"),
    ([CASES, "--libraries=exact"], "--libraries: goes with a sweep"),
    ([CASES, "--hnswlib=M=4"], "--hnswlib: goes with a sweep"),
    ([CASES, "--num_leaves=4,8"], "--num_leaves: one value with --cases"),
    ([CASES, "--gallery="], "--cases needs --gallery"),
])  # fmt: skip
def test_flags_that_are_refused(gallery, tmp_path, run_door, capsys, flags, message):
    assert run_door(
        benchmark_scann, f"--gallery={gallery}", f"--output={tmp_path / 'o'}", *QUICK, *flags
    ) == 2  # fmt: skip
    told = capsys.readouterr().err.strip()
    assert message in told and "\n" not in told
    assert not (tmp_path / "o").exists()


@pytest.fixture(scope="module")
def upgraded(tmp_path_factory):
    """A gallery with the columns of a fused search, its directory, and a map that is none."""
    directory = tmp_path_factory.mktemp("fused")
    train = make_gallery(str(directory / "train.lance")).path
    found = []
    for name, settings in (("fused", {"fusion": {"weight": 0.5}}), ("alone", {})):
        work = directory / name
        found.append(train_by_method("affine", train, "old", "new", work, settings=settings))
    path = make_gallery(str(directory / "g.lance"), seed=1).path
    opened = fct_tf.Gallery.open(path)
    opened.upgrade(found[0], "rows")
    opened.upgrade(found[0], "asked", side="query")
    return path, *found


FUSED = "--cases=old:old,asked:rows,asked:asked"


def test_the_command_re_ranks_what_the_old_index_finds(upgraded, tmp_path, run_door):
    path, work, _ = upgraded
    flags = [f"--gallery={path}", f"--output={tmp_path / 'o'}", *QUICK, "--num_queries=0", FUSED]
    flags += ["--cmc=1,5", "--backfilled=", f"--transformation={work}", f"--rerank={ROWS}"]
    assert run_door(benchmark_scann, *flags) == 0
    document = json.loads((tmp_path / "o" / "across.json").read_text())
    told = [(one["case"], one["index"]) for one in document["records"]]
    assert told[1:3] == [("asked/rows", "built"), ("asked/rows", "reranked")] and len(told) == 5
    column, one = document["records"][1:3]
    assert one["recall"] == column["recall"] == {"1": 1, "5": 1}
    exactly = fct_tf.Gallery.open(path).evaluate("rows", query_column="asked")
    assert one["cmc"] == pytest.approx({str(k): exactly.cmc[k] for k in (1, 5)})
    assert "old, re-ranked" in (tmp_path / "o" / "across.svg").read_text()
    written = (tmp_path / "o" / "across.md").read_text()
    assert f"the first {ROWS} rows that it finds" in " ".join(written.split())


@pytest.mark.parametrize("flags, message", [
    (["--rerank=9"], "--rerank, --transformation: go together"),
    (["--transformation={fused}"], "--rerank, --transformation: go together"),
    (["--target=new"], "--target: goes with --rerank"),
    (["--side_info=side"], "--side_info: goes with --rerank"),
    (["--rerank=9", "--transformation={alone}"], "is no fused search.*leave --rerank out"),
    (["--rerank=9", "--transformation={fused}", "--target=side"], "with --target"),
    (
        ["--rerank=9", "--transformation={fused}", "--cases=old:old,asked:asked"],
        "made the rows of none of --cases",
    ),
    (
        ["--rerank=9", "--transformation={fused}", "--cases=asked:rows"],
        "--cases=asked:rows: none has queries and rows of the old model",
    ),
    (
        ["--rerank=9", "--transformation={fused}", "--cases=new:old,asked:rows"],
        "--cases=new:old,asked:rows: none has queries and rows of the old model",
    ),
    (["--cases=", "--column=old", "--rerank=9"], "--rerank: goes with --cases"),
    (["--rerank=9", "--transformation={fused}", "--gallery="], "--cases needs --gallery"),
])  # fmt: skip
def test_re_ranking_that_is_refused(upgraded, tmp_path, run_door, capsys, flags, message):
    path, fused, alone = upgraded
    at = tmp_path / "o"
    given = [flag.format(fused=fused, alone=alone) for flag in flags]
    door = [f"--gallery={path}", f"--output={at}", *QUICK, FUSED, *given]
    assert run_door(benchmark_scann, *door) == 2
    told = capsys.readouterr().err.strip()
    assert re.search(message, told) and "\n" not in told, told
    assert not at.exists()


@pytest.mark.parametrize("what", [["--column=new", "--libraries=exact"], [CASES]])
def test_a_second_process_is_refused_the_directory(gallery, tmp_path, run_door, capsys, what):
    at = tmp_path / "o"
    flags = [f"--gallery={gallery}", f"--output={at}", "--num_queries=20", *QUICK, *what]
    with runs.locked(at, "the first"):
        assert run_door(benchmark_scann, *flags, "--overwrite") == 2
        told = capsys.readouterr().err.strip()
        assert re.search(r"another process is at work on this", told) and "\n" not in told
        assert not [*at.iterdir()]
    assert run_door(benchmark_scann, *flags) == 0


def test_columns_with_two_distances_need_one(tmp_path):
    rows = sides()
    columns = [
        table.Column(name, DIM, table.imported_space("m"), distance=distance)
        for name, distance in (("old", "l2"), ("new", "cosine"))
    ]
    rows = Rows(rows.ids, rows.labels, {name: rows.vectors[name] for name in ("old", "new")})
    table.create(tmp_path / "g.lance", [rows], columns)
    opened = table.open_gallery(tmp_path / "g.lance")
    with pytest.raises(InputError, match="two distances; give `distance`"):
        benchmark_data.of_cases(opened, [OLD, NEW])
    assert benchmark_data.of_cases(opened, [OLD, NEW], distance="cosine")[2] == "cosine"


def test_the_section_of_a_report(tmp_path):
    rows = sides()
    found = across.measure(
        *(rows, rows, [UPGRADED, NEW], "l2"), shares=(0.5,), settings=COMPLETE, measuring=FAST
    )
    records = [{**one, "method": "<fct>", "seed": seed} for seed in (0, 1) for one in found]
    html = ann_across.section(records, tmp_path).replace("<wbr>", "")
    assert html.count("<figure") == 8 and "&lt;fct&gt;, seed 1" in html
    # What is asked first, and all the rest to unfold.
    assert html.count("<table") == 4 and html.count("<details") == 2
    first, more = (
        re.findall(r'scope="col"[^>]*>(.*?)<', part) for part in html.split("<table")[1:3]
    )
    assert len(first) == 6 and {*first[1:], *more[1:]} == {*ann_across.table(found).header[2:]}
    assert html.count(">new/T(old), 50 % backfilled, kept, upserted<") == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        f"across-{place}-{at}-{theme}.svg"
        for place in (0, 1) for at in range(4) for theme in ("light", "dark")
    )  # fmt: skip
    assert ann_across.section([], tmp_path) == ""
