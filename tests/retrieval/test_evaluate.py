"""The evaluate door: results.json, per-class results, spaces, bad input, reference numbers."""

import csv
import json
import os
import shutil
import subprocess
import sys
import time

import lance
import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import average_precision_score

from fct_tf import evaluate, import_gallery
from fct_tf.gallery import table
from fct_tf.retrieval import exact, two_columns

SPACE = {name: table.imported_space(name) for name in ("old", "new")}


def column(name, space="old", dim=3, **settings):
    return table.Column(name, dim, SPACE[space], created_by={"model": f"{space} net"}, **settings)


def rows(names, dim=3, seed=0, prefix="row", count=53, classes=7):
    generator = np.random.default_rng(seed)
    ids = np.array([f"{prefix}{row}" for row in range(count)], object)
    labels = np.array([f"c{value}" for value in generator.integers(0, classes, count)], object)
    labels[::9] = None
    vectors = {name: generator.integers(0, 4, (count, dim)).astype(np.float32) for name in names}
    return table.Rows(ids, labels, vectors)


@pytest.fixture
def path(tmp_path):
    columns = [column("old"), column("new", "new"), column("fct", "new", compatible_with=())]
    columns.append(column("friend", "new", compatible_with=(SPACE["old"],)))
    data = rows(["old", "new", "fct", "friend"])
    data.vectors["fct"] = data.vectors["new"] + (np.arange(53) % 2)[:, None]
    table.create(tmp_path / "g.lance", [data], columns, rows_per_file=10)
    return tmp_path / "g.lance"


@pytest.fixture
def door(path, run_door):
    def run(gallery_column, query_column, *flags, gallery=None):
        return run_door(
            evaluate,
            f"--gallery={gallery or path}",
            f"--gallery_column={gallery_column}",
            f"--query_column={query_column}",
            f"--output={path.parent / 'r.json'}",
            *flags,
        )

    return run


def slow(query, query_ids, query_labels, gallery, gallery_ids, gallery_labels):
    """(cmc@1, cmc@3, map, queries without match), one query at a time."""
    ranks, precisions, without = [], [], 0
    for vector, own, label in zip(query, query_ids, query_labels, strict=True):
        if label is None:
            continue
        kept = gallery_ids != own
        distance = np.square(gallery[kept] - vector).sum(axis=1)
        match = np.array([other == label for other in gallery_labels[kept]])
        if not match.any():
            without += 1
            continue
        ranks.append(1 + np.sum(distance[~match] <= distance[match].min()))
        precisions.append(average_precision_score(match, -distance))
    ranks = np.array(ranks)
    return np.mean(ranks <= 1), np.mean(ranks <= 3), np.mean(precisions), without


def test_results_json(path, door, capsys):
    assert door("fct", "new", "--ks=3,1") == 0
    record = json.loads((path.parent / "r.json").read_text())
    data = table.open(path).read(["new", "fct"], with_labels=True)
    side = (data.ids, data.labels)
    first, third, mean, without = slow(data.vectors["new"], *side, data.vectors["fct"], *side)
    assert list(record["cmc"]) == ["1", "3"]
    assert record["cmc"]["1"] == pytest.approx(first, abs=1e-9)
    assert record["cmc"]["3"] == pytest.approx(third, abs=1e-9)
    assert record["map"] == pytest.approx(mean, abs=1e-9)
    assert record["num_queries"] == 47 and record["num_queries_without_label"] == 6
    assert record["num_queries_without_match"] == without
    assert record["num_self_removed"] == 47 and record["num_gallery"] == 53
    assert record["distance"] == "l2" and record["search"] == "exact"
    expected = {
        "path": str(path), "version": 1, "column": "fct", "space": SPACE["new"], "model": "new net",
    }  # fmt: skip
    assert record["gallery"] == expected and record["query"] == expected | {"column": "new"}
    low, high = record["confidence"]["cmc"]["1"]
    assert low <= first <= high
    low, high = record["confidence"]["map"]
    assert low <= mean <= high
    assert f"new/fct: CMC@1 {100 * first:.2f} %" in capsys.readouterr().out


def test_queries_of_another_gallery(path, door):
    queries = rows(["q"], seed=3, prefix="query", count=29, classes=11)
    queries.ids[:5] = ["row40", "row41", "row42", "row43", "row44"]
    table.create(path.parent / "q.lance", [queries], [column("q")])
    assert door("old", "q", f"--query={path.parent / 'q.lance'}", "--ks=1,3") == 0
    record = json.loads((path.parent / "r.json").read_text())
    data = table.open(path).read(["old"], with_labels=True)
    first, third, mean, without = slow(
        queries.vectors["q"],
        queries.ids,
        queries.labels,
        data.vectors["old"],
        data.ids,
        data.labels,
    )
    assert record["cmc"] == {"1": pytest.approx(first), "3": pytest.approx(third)}
    assert record["map"] == pytest.approx(mean) and without > 0
    assert record["num_queries_without_match"] == without
    assert record["num_self_removed"] == sum(label is not None for label in queries.labels[:5])


def test_versions_are_recorded_and_read(path, door):
    gallery = table.open(path)
    table.tag(path, "live")
    table.add_column(
        gallery, column("old"), lambda part: part.vectors["old"] * 0, ["old"], overwrite=True
    )
    assert door("old", "old", gallery=f"{path}@live") == 0
    live = json.loads((path.parent / "r.json").read_text())
    assert live["gallery"]["version"] == 1 and live["gallery"]["path"] == str(path)
    # The new version has collapsed: all distances are equal.
    assert door("old", "old", "--overwrite") == 0
    collapsed = json.loads((path.parent / "r.json").read_text())
    assert collapsed["gallery"]["version"] == 2
    assert collapsed["cmc"]["1"] == 0 < live["cmc"]["1"]


def test_per_class_output(path, door):
    out = path.parent
    assert door("fct", "new", f"--per_class_output={out / 'c.csv'}") == 0
    assert door("fct", "new", f"--per_class_output={out / 'c.json'}", "--overwrite") == 0
    record = json.loads((out / "r.json").read_text())
    classes = json.loads((out / "c.json").read_text())
    with open(out / "c.csv", newline="") as file:
        table_rows = list(csv.DictReader(file))
    assert [row["label"] for row in classes] == sorted(row["label"] for row in classes)
    assert list(table_rows[0]) == list(classes[0])
    assert [row["map"] for row in table_rows] == [str(row["map"]) for row in classes]
    weights = [row["num_queries"] - row["num_queries_without_match"] for row in classes]
    assert sum(row["num_queries"] for row in classes) == record["num_queries"]
    for key, whole in (("cmc@1", record["cmc"]["1"]), ("map", record["map"])):
        values = [row[key] or 0 for row in classes]
        assert np.average(values, weights=weights) == pytest.approx(whole)


def test_distance_is_the_gallery_columns_own(tmp_path, run_door):
    data = rows(["a"])
    table.create(tmp_path / "g.lance", [data], [column("a", distance="cosine")])
    common = [f"--gallery={tmp_path / 'g.lance'}", "--gallery_column=a", "--query_column=a"]
    for flags, distance in (([], "cosine"), (["--distance=l2"], "l2")):
        assert run_door(evaluate, *common, f"--output={tmp_path / distance}.json", *flags) == 0
        record = json.loads((tmp_path / f"{distance}.json").read_text())
        assert record["distance"] == distance


def test_spaces(door, capsys):
    assert door("old", "new") == 2
    error = capsys.readouterr().err
    for part in (SPACE["old"], SPACE["new"], "old net", "new net", "--allow_space_mismatch"):
        assert part in error
    assert door("old", "new", "--allow_space_mismatch") == 0
    assert door("old", "friend", "--overwrite") == 0
    assert door("friend", "old", "--overwrite") == 0


def test_an_existing_output_is_refused(path, door, capsys):
    (path.parent / "r.json").write_text("precious")
    assert door("old", "old") == 2
    assert "r.json: exists already; pass --overwrite" in capsys.readouterr().err
    assert (path.parent / "r.json").read_text() == "precious"
    assert door("old", "old", "--overwrite") == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--gallery=nothing.lance"], "nothing.lance: no gallery"),
        (["--query=nothing.lance"], "nothing.lance: no gallery"),
        (["--gallery_column=nwe"], "no embedding column 'nwe'; there are: old, new, fct, friend"),
        (["--query_column=label"], "no embedding column 'label'"),
        (["--ks=0"], "--ks=0: whole numbers from 1"),
        (["--ks=one"], "--ks=one"),
        (["--distance=manhattan"], "manhattan"),
        (["--search=quantum"], "quantum"),
        (["--per_class_output=x.xml"], ".csv or .json"),
        (["--unknown=1"], "unknown"),
        (["--seed=-1"], "seed"),
        (["--output="], "--output is empty"),
        (["--output=DIRECTORY", "--overwrite"], "is a directory; name a file"),
        (["--output=DIRECTORY/new/"], "is a directory; name a file"),
        (["--output=DIRECTORY/file/r.json"], "file is a file, not a directory"),
        (["--per_class_output=DIRECTORY/r.json"], "is --output; name another file"),
        (["--output=DIRECTORY/new/r.json", "--gallery=nothing.lance"], "nothing.lance: no gallery"),
    ],
)
def test_bad_flags(path, door, capsys, flags, message):
    (path.parent / "file").write_text("x")
    flags = [flag.replace("DIRECTORY", str(path.parent)) for flag in flags]
    assert door("old", "old", *flags) == 2
    captured = capsys.readouterr()
    assert message in captured.err.splitlines()[-1]
    assert sorted(os.listdir(path.parent)) == ["file", "g.lance"]


def test_a_directory_without_permission(path, door, capsys, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # As root everything is allowed.
    assert door("old", "old", f"--output={path.parent / 'new' / 'r.json'}") == 2
    assert f"no permission to write in {path.parent}\n" in capsys.readouterr().err
    monkeypatch.undo()
    assert door("old", "old", f"--output={path.parent / 'new' / 'deep' / 'r.json'}") == 0


def test_no_labelled_query_is_an_error(tmp_path, run_door, capsys):
    data = rows(["a"])
    data.labels[:] = None
    table.create(tmp_path / "g.lance", [data], [column("a")])
    flags = [f"--gallery={tmp_path / 'g.lance'}", "--gallery_column=a", "--query_column=a"]
    assert run_door(evaluate, *flags, f"--output={tmp_path / 'r.json'}") == 2
    assert "with import_gallery --labels into a new gallery" in capsys.readouterr().err
    assert not (tmp_path / "r.json").exists()
    # The advice works.
    np.savez(tmp_path / "a.npz", embeddings=data.vectors["a"], ids=data.ids.astype(str))
    (tmp_path / "labels.txt").write_text("\n".join(f"c{row % 5}" for row in range(53)))
    imported = [f"--gallery={tmp_path / 'new.lance'}", f"--embeddings={tmp_path / 'a.npz'}"]
    imported += ["--column=a", "--model_name=old", f"--labels={tmp_path / 'labels.txt'}"]
    assert run_door(import_gallery, *imported) == 0
    flags[0] = f"--gallery={tmp_path / 'new.lance'}"
    assert run_door(evaluate, *flags, f"--output={tmp_path / 'r.json'}") == 0


def test_rows_that_only_share_their_number_are_doubted(tmp_path, run_door, capsys):
    def imported(name, seed, count):
        made = rows(["a"], seed=seed, prefix="old:", count=count)
        np.save(tmp_path / "a.npy", made.vectors["a"])
        (tmp_path / "labels.txt").write_text("\n".join(label or "" for label in made.labels))
        flags = [f"--gallery={tmp_path / name}", f"--embeddings={tmp_path / 'a.npy'}"]
        flags += ["--column=a", "--model_name=old", f"--labels={tmp_path / 'labels.txt'}"]
        assert run_door(import_gallery, *flags) == 0
        assert "rows are numbered old:0" in capsys.readouterr().err
        return made

    stored, queries = imported("g.lance", 0, 53), imported("q.lance", 1, 29)
    shutil.copytree(tmp_path / "g.lance", tmp_path / "copy.lance")
    flags = [f"--gallery={tmp_path / 'g.lance'}", "--gallery_column=a", "--query_column=a"]
    flags += [f"--output={tmp_path / 'r.json'}", "--overwrite"]
    assert run_door(evaluate, *flags, f"--query={tmp_path / 'q.lance'}") == 0
    pairs = list(zip(queries.labels, stored.labels, strict=False))
    labels = sum(bool(a and b and a != b) for a, b in pairs)
    there = np.array([a is not None for a, _ in pairs])
    vectors = (queries.vectors["a"] != stored.vectors["a"][:29]).any(axis=1)[there].sum()
    assert labels and vectors
    told = f"of {there.sum()} queries whose id the gallery has, {labels} with another label and "
    assert told + f"{vectors} with another vector in the same space" in capsys.readouterr().err
    # The same rows in two tables are no reason to doubt.
    assert run_door(evaluate, *flags, f"--query={tmp_path / 'copy.lance'}") == 0
    assert run_door(evaluate, *flags) == 0
    assert "whose id the gallery has" not in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["nan", "repeated", "truncated"])
def test_bad_rows_and_files_are_named(path, door, capsys, damage):
    if damage == "nan":
        bad = pa.table({"id": ["row7"], "old": pa.array([[np.nan] * 3], pa.list_(pa.float32(), 3))})
        lance.dataset(str(path)).merge_insert("id").when_matched_update_all().execute(bad)
        message = "column 'old': row 'row7' with NaN or infinity"
    elif damage == "repeated":
        dataset = lance.dataset(str(path))
        lance.write_dataset(dataset.to_table(filter="id = 'row9'"), str(path), mode="append")
        message = "id 'row9' occurs more than once"
    else:
        file = sorted((path / "data").iterdir())[0]
        file.write_bytes(file.read_bytes()[:100])
        message = f"{file.name}: data file has 100 bytes instead of"
    assert door("old", "old") == 2
    error = capsys.readouterr().err.strip()
    assert message in error and error.count("error: ") == 1 and "\n" not in error
    assert not (path.parent / "r.json").exists()


def test_no_match_at_all_gives_null(tmp_path):
    data = rows(["a"])
    data.labels[:] = data.ids
    gallery = table.create(tmp_path / "g.lance", [data], [column("a")])
    record = two_columns.evaluate(gallery, "a", gallery, "a")
    assert record["cmc"] == {"1": None, "5": None}
    assert record["map"] is None and record["confidence"] is None
    assert record["num_queries_without_match"] == record["num_queries"] == 53


def test_different_dimensions_are_refused(tmp_path, path, door, capsys):
    table.create(tmp_path / "w.lance", [rows(["w"], dim=4)], [column("w", dim=4)])
    assert door("old", "w", f"--query={tmp_path / 'w.lance'}", "--allow_space_mismatch") == 2
    assert "different dimensions: 4 (model old net) and 3" in capsys.readouterr().err


def test_no_tensorflow_is_imported():
    code = (
        "import sys\n"
        "import fct_tf.evaluate, fct_tf.import_gallery, fct_tf.inspect_gallery\n"
        "import fct_tf.gallery.table, fct_tf.retrieval.exact\n"
        "heavy = {'tensorflow', 'keras', 'scann', 'h5py', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# The peak of this process alone: what the operating system says of children may include the
# process that started them.
PEAK_MEMORY = """
import sys
from fct_tf.common import cli
from fct_tf import evaluate
status = cli.call(evaluate.__doc__, evaluate.main, evaluate.define_flags, sys.argv)
print(*[line for line in open("/proc/self/status") if line.startswith("VmHWM")])
sys.exit(status)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
@pytest.mark.parametrize(
    ("name", "expected"),
    [("embedding_old", (71.03, 89.77, 45.50)), ("embedding_new", (78.52, 93.40, 54.72))],
)
def test_the_reference_rows_score_what_the_table_says(shared_datasets, tmp_path, name, expected):
    output = tmp_path / "r.json"
    command = [sys.executable, "-c", PEAK_MEMORY, f"--output={output}"]
    command.append(f"--gallery={shared_datasets / 'reference_rows' / 'test.lance'}")
    command += [f"--gallery_column={name}", f"--query_column={name}"]
    start = time.monotonic()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds = time.monotonic() - start
    record = json.loads(output.read_text())
    found = (record["cmc"]["1"], record["cmc"]["5"], record["map"])
    assert tuple(round(100 * value, 2) for value in found) == expected
    assert record["num_queries"] == record["num_self_removed"] == record["num_gallery"] == 13180
    # Under 6 s on two free cores; the machine may be busy here.
    assert seconds < 30
    assert 0.05e6 < int(done.stdout.split()[-2]) < 0.6e6  # kB


@pytest.mark.parametrize("kind", [pa.string(), pa.dictionary(pa.int32(), pa.string()), pa.int64()])
def test_exclude_same(path, door, kind):
    """Groups by a column of strings or of whole numbers, also of such that no float32 holds."""
    dataset = lance.dataset(str(path))
    numbers = 2**40 + np.arange(53) % 4
    cameras = pa.array(numbers if kind == pa.int64() else numbers.astype(str)).cast(kind)
    dataset.add_columns(pa.RecordBatchReader.from_batches(
        pa.schema([pa.field("camera", kind)]),
        [pa.RecordBatch.from_arrays([cameras], names=["camera"])],
    ))  # fmt: skip
    assert door("old", "old", "--exclude_same=camera") == 0
    record = json.loads((path.parent / "r.json").read_text())
    read = table.open_gallery(path).read(["old"], with_labels=True)
    side, groups = (read.vectors["old"], read.ids, read.labels), numbers.astype(str).astype(object)
    found = exact.per_query(*side, *side, groups=(groups, groups))
    assert record["exclude_same"] == "camera"
    assert record["map"] == np.nanmean(found.average_precision)
    assert record["num_queries_without_match"] == np.sum(found.rank == 0)
    assert np.nanmean(exact.per_query(*side, *side).average_precision) != record["map"]


def test_exclude_same_of_a_column_that_does_not_group(door, capsys):
    for name in ("nothing", "old"):
        assert door("old", "old", f"--exclude_same={name}") == 2
        message = capsys.readouterr().err
        assert f"exclude_same={name}: no column of strings" in message and "label" in message
    assert door("old", "old", "--exclude_same=label", "--search=scann") == 2
    assert "exact search of all rows" in capsys.readouterr().err
