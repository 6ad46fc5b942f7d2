"""The benchmark: its numbers, its files, and what is left when it is stopped."""

import json
import re
import subprocess

import h5py
import numpy as np
import pytest

from fct_tf import benchmark_scann
from fct_tf.ann import benchmark, benchmark_data, hdf5, peers, sweep
from fct_tf.ann.benchmark_data import Data
from fct_tf.common.errors import InputError
from fct_tf.gallery import table
from fct_tf.report import pareto
from fct_tf.retrieval import exact

FAST = sweep.Measuring(k=5, ks=(1, 5, 11), threads=2, rounds=2, seconds=0.0)


def side(count, dim=6, seed=0):
    return np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)


def data(distance="l2", count=307):
    return Data("made", distance, side(count), side(23, seed=1))


def published(path, distance="euclidean", **changed):
    """A data set as ann-benchmarks publishes them; its distances come from its own definition."""
    train, test = side(307), side(23, seed=1)
    rows, queries = train.astype(np.float64), test.astype(np.float64)
    if distance == "angular":
        rows, queries = (x / np.linalg.norm(x, axis=1)[:, None] for x in (rows, queries))
        distances = 1 - queries @ rows.T
    else:
        distances = np.sqrt(((queries[:, None] - rows[None]) ** 2).sum(axis=2))
    neighbors = np.argsort(distances, axis=1)[:, :100]
    content = {
        "train": train,
        "test": test,
        "neighbors": neighbors.astype(np.int32),
        "distances": np.take_along_axis(distances, neighbors, axis=1).astype(np.float32),
    } | {name: value for name, value in changed.items() if name != "type"}
    with h5py.File(path, "w") as file:
        for name, value in content.items():
            if value is not None:
                file[name] = value
        if distance is not None:
            file.attrs["distance"] = distance
        if "type" in changed:
            file.attrs["type"] = changed["type"]
    return path


@pytest.mark.parametrize("distance, ours", [("euclidean", "l2"), ("angular", "cosine")])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8])
def test_published_files_are_read_and_written(distance, ours, dtype, tmp_path):
    train = (side(307) * 20 + 100).astype(dtype)
    found = hdf5.read(published(tmp_path / "a-6.hdf5", distance, train=train, neighbors=None))
    assert (found.name, found.distance, found.neighbors) == ("a-6", ours, None)
    np.testing.assert_array_equal(found.rows, train.astype(np.float32))
    truth = benchmark.Truth.of(found.rows, found.queries, ours, 100)
    whole = benchmark_data.replace(found, neighbors=truth.neighbors)
    hdf5.write(tmp_path / "b.hdf5", whole, truth.distances)
    again = hdf5.read(tmp_path / "b.hdf5")
    np.testing.assert_array_equal(again.neighbors, truth.neighbors)
    with h5py.File(tmp_path / "b.hdf5") as file:
        assert file.attrs["distance"] == distance
        rows, query = (np.asarray(file[name], np.float64) for name in ("train", "test"))
        near = rows[file["neighbors"][3]]
        if distance == "euclidean":
            expected = np.linalg.norm(near - query[3], axis=1)
        else:
            lengths = np.linalg.norm(near, axis=1) * np.linalg.norm(query[3])
            expected = 1 - near @ query[3] / lengths
        np.testing.assert_allclose(file["distances"][3], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("distance, changed, message", [
    ("hamming", {}, "distance 'hamming'; data sets of distance euclidean or angular"),
    (None, {}, "no attribute distance"),
    ("euclidean", {"type": "sparse"}, "type 'sparse': only dense"),
    ("euclidean", {"train": None}, "no dataset 'train'; there are: distances, neighbors, test"),
    ("euclidean", {"test": side(23, 7)}, "train has 6 dimensions, test 7"),
    ("euclidean", {"train": np.full((307, 6), np.nan)}, "train: row '?0'? and 306 more rows with"),
    ("euclidean", {"test": np.zeros((23,))}, r"test is float64 \[23\]; it must be numbers"),
    ("euclidean", {"test": np.zeros((0, 6))}, "it must be numbers"),
    ("angular", {"neighbors": np.full((23, 9), 307)}, "rows that train does not have, of 307"),
    ("angular", {"neighbors": np.zeros((22, 9), int)}, "one line for each row of test"),
    ("angular", {"neighbors": np.zeros((23, 9))}, "must be whole numbers"),
])  # fmt: skip
def test_other_files_are_refused_by_name(distance, changed, message, tmp_path):
    path = published(tmp_path / "x.hdf5", distance, **changed)
    with pytest.raises(InputError, match=f"x.hdf5: {message}|x.hdf5.*{message}"):
        hdf5.read(path)


@pytest.mark.parametrize("content", [None, b"", b"no HDF5"])
def test_what_is_no_hdf5_file_is_refused(content, tmp_path):
    if content is not None:
        (tmp_path / "x.hdf5").write_bytes(content)
    with pytest.raises(InputError, match=r"x.hdf5: (no such file|not a readable HDF5 file)"):
        hdf5.read(tmp_path / "x.hdf5")


def test_rows_of_zeros_are_left_out_and_keep_the_numbers_of_the_others(tmp_path):
    train = side(307)
    train[[0, 50]] = 0
    found = hdf5.read(published(tmp_path / "x.hdf5", "angular", train=train, neighbors=None))
    assert len(found.rows) == 305
    np.testing.assert_array_equal(found.outside(np.array([0, 48, 49, -1])), [1, 49, 51, -1])
    np.testing.assert_array_equal(found.rows[49], train[51])
    with pytest.raises(InputError, match="every row is with no direction"):
        benchmark_data.searchable(Data("x", "cosine", np.zeros((3, 2), np.float32), side(1, 2)))


def test_recall_counts_by_distance():
    true = np.array([[0.0, 1.0, 1.0, 4.0]])
    # Another row at distance 1 counts as well as the one that the truth names.
    for found, k, share in [
        ([0.0, 1.0, 1.0], 2, 1.0),
        ([1.0, 0.0, 9.0], 2, 1.0),
        ([0.0, 4.0, 9.0], 3, 1 / 3),
        ([0.0, np.inf, np.inf], 3, 1 / 3),
        ([1.0 + 1e-5, 4.0, 9.0], 2, 0.0),
    ]:
        assert benchmark.recall(np.array([found]), true, k) == pytest.approx(share), found
    near = np.array([[0.0, 1.0015]])  # 1.00075 where it is not squared.
    assert benchmark.recall(near, true, 2, "l2") == 0.5
    assert benchmark.recall(near, true, 2, "l2", benchmark.EPSILON) == 1
    assert benchmark.recall(near, true, 2, "cosine", benchmark.EPSILON) == 0.5
    # No row is never near, even of a query that has too few itself.
    nothing = np.full((1, 2), np.inf)
    assert benchmark.recall(nothing, nothing, 2) == 0


@pytest.mark.parametrize("distance", ["l2", "cosine"])
def test_true_distances_are_those_of_exact_search(distance):
    rows, queries = side(307), side(23, seed=1)
    rows[5], queries[2] = 0, 0
    found, expected = exact.search(queries, rows, 307, distance)
    np.testing.assert_allclose(
        benchmark.true_distances(rows, queries, found, distance), expected, atol=1e-5
    )
    missing = np.full((23, 2), -1)
    assert np.isinf(benchmark.true_distances(rows, queries, missing, distance)).all()


def test_neighbours_that_are_not_the_nearest_are_refused():
    rows, queries = side(307), side(23, seed=1)
    true = exact.search(queries, rows, 11)[0]
    truth = benchmark.Truth.of(rows, queries, "l2", 5, true[:, ::-1])
    np.testing.assert_array_equal(truth.neighbors, true[:, :5][:, :5])
    assert truth.recall(true, 5) == 1 and truth.recall(np.roll(true, 1, axis=0), 5) < 0.5
    with pytest.raises(InputError, match="neighbors of query 0 are not its 5 nearest rows by l2"):
        benchmark.Truth.of(rows, queries, "l2", 5, np.roll(true, 1, axis=0))


@pytest.mark.parametrize("seed", range(5))
def test_the_front_is_what_no_other_point_beats(seed):
    generator = np.random.default_rng(seed)
    points = [tuple(point) for point in generator.integers(0, 12, (60, 2)).tolist()]
    found = pareto.front(points)
    kept = {points[place] for place in found}
    beaten = {a for a in points if any(b != a and b[0] >= a[0] and b[1] >= a[1] for b in points)}
    assert kept == set(points) - beaten and len(found) == len(kept)
    assert [points[place][1] for place in found] == sorted((p[1] for p in kept), reverse=True)


def test_settings_that_are_not_given_are_changed_one_by_one():
    def builds(**given):
        return sweep.plan(["scann", "faiss_ivf", "exact"], 10_000, 16, 10, given)

    usual = [build for build in builds() if build.library == "scann"]
    first = usual[0].settings
    assert first == {
        "num_leaves": 200,
        "dimensions_per_block": 2,
        "anisotropic_quantization_threshold": 0.2,
        "reordering_data": "float32",
    }
    changes = [
        {name: value for name, value in build.settings.items() if value != first[name]}
        for build in usual[1:]
    ]
    assert changes == [
        {"num_leaves": 100},
        {"num_leaves": 400},
        {"dimensions_per_block": 4},
        {"anisotropic_quantization_threshold": None},
        {"reordering_data": "bfloat16"},
        {"reordering_data": "int8"},
    ]
    given = {"num_leaves": [3, 50], "reordering_data": ["int8"], "num_leaves_to_search": [2, 9, 70]}
    combined = [build for build in builds(scann=given) if build.library == "scann"]
    assert [build.settings["num_leaves"] for build in combined] == [3, 50]
    asked = [[search["num_leaves_to_search"] for search in one.searches] for one in combined]
    assert [sorted(set(values)) for values in asked] == [[2, 3], [2, 9, 50]]
    assert [len(one.searches) for one in builds() if one.library == "exact"] == [1]
    with pytest.raises(InputError, match="scann: no setting 'leaves' to sweep; there are: num_l"):
        builds(scann={"leaves": [1]})


class Recorded:
    """An index that only notes how it is searched."""

    def __init__(self, name, calls):
        self.name, self.calls = name, calls

    def search(self, queries, k, *, threads=None, **settings):
        self.calls.append((self.name, len(queries), threads, settings["wide"]))


def test_points_take_turns_and_each_mode_has_its_threads():
    calls = []
    points = [benchmark.Point(Recorded(name, calls), {"wide": name == "b"}) for name in "ab"]
    rounds = benchmark.measure(points, side(7), 3, threads=4, rounds=2, seconds=0.0)
    one = [(1, 1)] * 8 + [(7, 1), (7, 4)]  # One to begin with, seven alone, and two batches.
    expected = [(name, *call, name == "b") for name in "abab" for call in one]
    assert calls == expected
    assert [len(measured) for measured in rounds] == [2, 2]
    summary = benchmark.summary(
        [
            {"qps": dict.fromkeys(benchmark.MODES, speed), "latency_ms": {"p50": 1 / speed}}
            for speed in (10.0, 40.0, 20.0)
        ]
    )
    assert summary["qps"]["single"] == 40 and summary["qps_median"]["single"] == 20
    assert summary["latency_ms"]["p50"] == 1 / 40


def plan(**given):
    return sweep.plan(["hnswlib", "faiss_flat", "exact"], 307, 6, 5, given)


HNSW = {"M": [4, 8], "ef": [5, 300]}


@pytest.mark.parametrize("distance", ["l2", "cosine"])
def test_a_sweep_measures_every_point_of_every_library(distance, tmp_path):
    given = {"num_leaves": [4, 9], "num_leaves_to_search": [1, 9]}
    given |= {"reordering_num_neighbors": [307], "reordering_data": ["float32", "int8"]}
    builds = plan(hnswlib=HNSW) + sweep.plan(["scann"], 307, 6, 5, {"scann": given})
    records, failed = sweep.run(data(distance), builds, tmp_path, FAST, alone=False)
    assert not failed and len(records) == sum(len(build.searches) for build in builds) == 14
    by_library = pareto.by_library(records)
    for name in ("faiss_flat", "exact"):
        assert by_library[name][0]["recall"] == {"1": 1, "5": 1, "11": 1}
    for one in by_library["hnswlib"]:
        assert one["settings"]["search"]["ef"] == 5 or one["recall"]["11"] > 0.99
    for one in by_library["scann"]:
        settings = {**one["settings"]["build"], **one["settings"]["search"]}
        whole = settings["num_leaves_to_search"] == settings["num_leaves"]
        if settings["reordering_data"] == "float32":
            assert (one["recall"]["11"] == 1) == whole
        assert one["bytes"] > 307 * 6 and one["build_s"] > 0
        assert set(one["qps"]) == set(one["qps_median"]) == set(benchmark.MODES)
        assert one["latency_ms"]["p50"] <= one["latency_ms"]["p99"]
    assert not (tmp_path / sweep.WORK).exists()


@pytest.mark.parametrize("stop", [1, 4, 9])
def test_a_stopped_sweep_goes_on_where_it_was(stop, tmp_path, monkeypatch):
    built, measured, calls = [], [], 0
    latencies, build = benchmark.latencies, sweep.build_process.build

    def stopping(index, queries, *arguments, **settings):
        nonlocal calls
        calls += 1
        if calls == stop:
            raise KeyboardInterrupt
        measured.append(settings)
        return latencies(index, queries, *arguments, **settings)

    monkeypatch.setattr(benchmark, "latencies", stopping)
    monkeypatch.setattr(
        sweep.build_process,
        "build",
        lambda place, alone: built.append(place) or build(place, alone=alone),
    )
    with pytest.raises(KeyboardInterrupt):
        sweep.run(data(), plan(hnswlib=HNSW), tmp_path, FAST, alone=False)
    with open(tmp_path / sweep.JOURNAL, "a") as journal:
        journal.write('{"kind": "round", "bui')  # As a process leaves it that is killed.
    records, _ = sweep.run(data(), plan(hnswlib=HNSW), tmp_path, FAST, alone=False)
    assert len(built) == 4 and len(measured) == 2 * 6 and len(records) == 6
    # What is there already is measured no more, what is added is.
    more = {**HNSW, "M": [4, 8, 12]}
    records, _ = sweep.run(data(), plan(hnswlib=more), tmp_path, FAST, alone=False)
    assert len(built) == 5 and len(measured) == 2 * 8 and len(records) == 8


def test_a_broken_journal_is_refused_by_its_line(tmp_path):
    (tmp_path / sweep.JOURNAL).write_text('{"kind": "round"}\n')
    with pytest.raises(InputError, match="journal.jsonl: line 1 is broken; pass `overwrite=True`"):
        sweep.run(data(), plan(), tmp_path, FAST, alone=False)


def test_builds_that_fail_are_told_and_the_others_measured(tmp_path, monkeypatch):
    run = subprocess.run

    def killed(command, **settings):
        job = json.loads((sweep.Path(command[-1]) / "job.json").read_text())
        if job["library"] == "hnswlib":
            return subprocess.CompletedProcess(command, -9, "", "")
        return run(command, **settings)

    monkeypatch.setattr(sweep.subprocess, "run", killed)
    builds = plan(hnswlib={"M": [4], "ef": [5]})[:1] + plan()[-1:]
    builds += sweep.plan(["faiss_ivf"], 307, 6, 5, {"faiss_ivf": {"nlist": [400]}})
    records, failed = sweep.run(data(), builds, tmp_path, FAST)
    assert [one["library"] for one in records] == ["exact"]
    assert "killed by signal 9" in failed[0]["error"]
    assert "nlist=400 is more than there are rows" in failed[1]["error"]
    peak, before = records[0]["peak_memory_bytes"], records[0]["memory_before_bytes"]
    assert peak >= before > 10e6
    with pytest.raises(InputError, match="nothing could be built: .*killed"):
        sweep.run(data(), builds[:1], tmp_path / "other", FAST)


def their_recall(directory, path):
    """Recall as ann-benchmarks' plotting computes it, from its data set and a result."""
    with h5py.File(path) as run:
        about = {name: run.attrs[name] for name in run.attrs}
        found, neighbors, times = (run[name][:] for name in ("distances", "neighbors", "times"))
    with h5py.File(directory / "data" / f"{about['dataset']}.hdf5") as file:
        true = file["distances"][:]
    assert len(found) == len(true) == len(times)
    count = int(about["count"])
    total = 0
    for own, theirs in zip(found, true, strict=True):
        total += sum(1 for value in own[:count] if value <= theirs[count - 1] + 1e-3)
    return total / count / len(found), about, neighbors


@pytest.mark.parametrize("distance, ours", [("euclidean", "l2"), ("angular", "cosine")])
def test_the_command_and_ann_benchmarks_read_the_same_of_a_published_set(
    distance, ours, tmp_path, run_door, capsys
):
    (tmp_path / "data").mkdir()
    path = published(tmp_path / "data" / f"set-6-{distance}.hdf5", distance)
    flags = [f"--hdf5={path}", f"--output={tmp_path / 'out'}", f"--ann_benchmarks={tmp_path}"]
    flags += ["--libraries=hnswlib,exact", "--hnswlib=M=4;ef=10,300", "--rounds=1", "--seconds=0"]
    assert run_door(benchmark_scann, *flags) == 0
    shown = capsys.readouterr().out
    document = json.loads((tmp_path / "out" / "benchmark.json").read_text())
    assert document["data"]["distance"] == ours and document["data"]["num_queries"] == 23
    assert len(document["records"]) == 3 and document["versions"]["hnswlib"]
    with h5py.File(path) as file:
        true = file["neighbors"][:, :10]
    for one in document["records"]:
        settings = {**one["settings"]["build"], **one["settings"]["search"]}
        name = "_".join(f"{key}_{value}" for key, value in settings.items()) or "default"
        for folder, mode in ((one["library"], "single"), (f"{one['library']}-batch", "parallel")):
            result = tmp_path / "results" / f"set-6-{distance}" / "10" / folder / f"{name}.hdf5"
            recall, about, neighbors = their_recall(tmp_path, result)
            assert recall == pytest.approx(one["recall_within_epsilon"]["10"], abs=1e-6)
            assert 1 / about["best_search_time"] == pytest.approx(one["qps"][mode], rel=1e-5)
            assert about["algo"] == folder and bool(about["batch_mode"]) == (mode == "parallel")
            assert about["distance"] == distance and about["index_size"] == one["bytes"] / 1024
            if one["library"] == "exact":
                np.testing.assert_array_equal(neighbors, true)
        if one["library"] == "exact":
            assert one["recall"] == {"1": 1, "10": 1, "100": 1}
    table_ = (tmp_path / "out" / "benchmark.md").read_text()
    assert table_.startswith("| library | settings | recall@1 | recall@10 | recall@100 | QPS one |")
    assert "exact" in shown and "recall@10" in shown
    for mode in benchmark.MODES:
        drawn = (tmp_path / "out" / f"recall_qps_{mode}.svg").read_text()
        assert "Recall@10" in drawn and "hnswlib" in drawn and "mathdefault" not in drawn
    assert run_door(benchmark_scann, *flags) == 2
    assert "pass --overwrite" in capsys.readouterr().err


@pytest.fixture
def gallery(tmp_path):
    vectors = side(307)
    columns = [
        table.Column(name, 6, table.imported_space(space), created_by={"model": space})
        for name, space in (("a", "m"), ("b", "m"), ("c", "other"))
    ]
    ids = np.array([f"row{number}" for number in range(307)], object)
    values = {"a": vectors, "b": vectors + 1, "c": vectors}
    table.create(tmp_path / "g.lance", [table.Rows(ids, ids, values)], columns)
    return tmp_path / "g.lance"


def test_queries_of_a_gallery_are_left_out_of_it_by_id(gallery):
    opened = table.open(gallery)
    vectors = side(307)
    for query, column in ((None, ""), (None, "b"), (opened, "a")):
        found = benchmark_data.of_gallery(opened, "a", query, column, num_queries=23)
        assert found.rows.shape == (284, 6) and found.queries.shape == (23, 6)
        own = {tuple(row - (column == "b")) for row in found.queries}
        assert not own & {tuple(row) for row in found.rows}
        assert {tuple(row) for row in found.rows} < {tuple(row) for row in vectors}
    again = benchmark_data.of_gallery(opened, "a", opened, "a", num_queries=23)
    np.testing.assert_array_equal(again.queries, found.queries)
    with pytest.raises(InputError, match="no row is left beside 307 queries"):
        benchmark_data.of_gallery(opened, "a", num_queries=1000)
    with pytest.raises(InputError, match="other"):
        benchmark_data.of_gallery(opened, "a", None, "c")
    benchmark_data.of_gallery(opened, "a", None, "c", num_queries=3, allow_space_mismatch=True)


def test_the_command_on_a_gallery_writes_the_data_set_as_well(gallery, tmp_path, run_door):
    flags = [f"--gallery={gallery}", "--column=a", "--num_queries=23", f"--output={tmp_path / 'o'}"]
    flags += ["--libraries=exact", "--rounds=1", "--seconds=0", "--ks=1,10"]
    assert run_door(benchmark_scann, *flags, f"--ann_benchmarks={tmp_path}") == 0
    result = tmp_path / "results" / "g_a" / "10" / "exact" / "default.hdf5"
    assert their_recall(tmp_path, result)[0] == 1
    # An unfinished sweep of other data is not gone on with.
    (tmp_path / "o" / "benchmark.json").unlink()
    assert run_door(benchmark_scann, *flags, "--num_queries=22") == 2
    assert run_door(benchmark_scann, *flags, "--num_queries=22", "--overwrite") == 0


@pytest.mark.parametrize("flags, message", [
    ([], "give --gallery with --column, or --hdf5"),
    (["--gallery={g}", "--hdf5=x"], "give --gallery with --column, or --hdf5"),
    (["--gallery={g}"], "--gallery needs --column"),
    (["--hdf5=x.hdf5", "--column=a"], "--column goes with --gallery"),
    (["--hdf5=x.hdf5"], "x.hdf5: no such file"),
    (["--gallery={g}", "--column=z"], "no embedding column 'z'"),
    (["--gallery={g}", "--column=a"], "no row is left beside 307 queries"),
    (["--libraries=scan"], "'scan' is none of .*did you mean scann"),
    (["--num_leaves=ten"], "--num_leaves=ten: must be whole numbers"),
    (["--num_leaves=-1"], "numbers from 0 on"),
    (["--anisotropic_quantization_threshold=nan"], "numbers from 0 on"),
    (["--hnswlib=ef"], "--hnswlib=ef: write name=value,value;name=value"),
    (["--hnswlib=ef=x"], "--hnswlib=x: must be whole numbers"),
    (["--gallery={g}", "--column=a", "--num_queries=9", "--libraries=hnswlib", "--hnswlib=e=1"],
     "hnswlib: no setting 'e' to sweep; there are: M, ef_construction, ef"),
    (["--gallery={g}", "--column=a", "--num_queries=9", "--libraries=exact", "--k=299"],
     "298 rows have no 299 neighbours"),
    (["--ks=0,1"], "ranks start at 1"),
    (["--output={g}/x.txt"], "is a file; name a directory"),
])  # fmt: skip
def test_bad_input_is_one_line_and_writes_nothing(
    flags, message, gallery, tmp_path, run_door, capsys
):
    (gallery / "x.txt").write_text("")
    flags = [flag.replace("{g}", str(gallery)) for flag in flags]
    output = [] if any("output" in flag for flag in flags) else [f"--output={tmp_path / 'o'}"]
    assert run_door(benchmark_scann, *output, *flags) == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1
    assert re.search(message, error), error
    assert not (tmp_path / "o" / "benchmark.json").exists()


def test_a_library_that_is_not_installed_is_told_only_where_it_is_asked_for(
    gallery, tmp_path, run_door, capsys, monkeypatch
):
    find = peers.importlib.util.find_spec
    there = ("numpy",)
    monkeypatch.setattr(peers.scann_files, "available", lambda: False)
    monkeypatch.setattr(
        peers.importlib.util, "find_spec", lambda name: find(name) if name in there else None
    )
    flags = [f"--gallery={gallery}", "--column=a", "--num_queries=23", f"--output={tmp_path / 'o'}"]
    flags += ["--rounds=1", "--seconds=0"]
    assert run_door(benchmark_scann, *flags, "--libraries=hnswlib,exact") == 2
    told = "--libraries: hnswlib is not installed: pip install 'fct_tf[ann]'"
    assert told in capsys.readouterr().err
    assert run_door(benchmark_scann, *flags) == 0
    document = json.loads((tmp_path / "o" / "benchmark.json").read_text())
    assert {one["library"] for one in document["records"]} == {"exact"}
    assert "not installed" not in capsys.readouterr().err
