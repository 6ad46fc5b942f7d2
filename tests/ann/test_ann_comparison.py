"""The comparison of libraries at tiny sizes: what it builds, keeps, measures and writes."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from fct_tf.ann import build_process
from fct_tf.common import cli
from fct_tf.report import ann
from tests.builders import write_gallery


@pytest.fixture
def comparison(script, monkeypatch):
    ann_comparison = script("ann_comparison")

    # In this process: each of its own would load ScaNN anew.
    def here(directory):
        build_process.build(directory, alone=False)

    monkeypatch.setattr(ann_comparison, "in_a_process", here)
    monkeypatch.setattr(ann_comparison, "RACE_SECONDS", 0.0)
    return ann_comparison


def gallery(path, count, seed, space="a"):
    generator = np.random.default_rng(seed)
    vectors = generator.normal(size=(count, 8)).astype(np.float32)
    spaces = {"embedding_new": space * 64}
    write_gallery(path, {"embedding_new": vectors}, ids=f"{seed}/", spaces=spaces)


def run(comparison, *arguments):
    return cli.call("", comparison.main, comparison.define_flags, ["ann_comparison", *arguments])


@pytest.mark.slow
def test_indices_are_built_once_and_measured_at_each_recall(
    tmp_path, comparison, monkeypatch, capsys
):
    gallery(tmp_path / "rows.lance", 2503, 0)
    gallery(tmp_path / "asked.lance", 211, 1)
    some = [
        ("scann", {"num_leaves": 50}),
        ("faiss_ivf", {"nlist": 50, "m": 4}),
        ("hnswlib", {"M": 16}),
        ("faiss_ivf", {"nlist": 5000, "m": 4}),  # Refused: more than there are rows.
    ]
    monkeypatch.setattr(comparison, "builds", lambda *_: some)
    monkeypatch.setattr(comparison, "WANTED", (0.8, 0.95))
    monkeypatch.setattr(sys, "argv", ["ann_comparison.py", f"--workdir={tmp_path}/work"])
    work = f"--workdir={tmp_path}/work"
    both = [f"--gallery={tmp_path}/rows.lance", f"--queries={tmp_path}/asked.lance"]
    assert run(comparison, "--stage=build", work, *both) == 0
    built = capsys.readouterr().out
    assert built.count("build_s") == 3 and "more than there are rows" in built
    # What is there is not built again; another setting is.
    some.append(("hnswlib", {"M": 8}))
    assert run(comparison, "--stage=build", work, *both) == 0
    assert capsys.readouterr().out.count("build_s") == 1

    output = tmp_path / "comparison.json"
    settings = ["--rounds=2", "--seconds=0", f"--plots={tmp_path}/plots"]
    assert run(comparison, "--stage=search", work, f"--output={output}", *settings) == 0
    found = json.loads(output.read_text())
    assert str(tmp_path) not in output.read_text()
    records = found["results"]
    for one in records:
        assert one["data"] == "rows" and one["qps"] > 0 and one["bytes"] > 0
        assert one["build_s"] >= 0 and one["recall"] >= one["wanted_recall"]
        assert ("qps_single" in one) == (one["threads"] == 1)
    cores = found["cores"]
    cases = {(one["library"], one["wanted_recall"], one["threads"]) for one in records}
    libraries = ("scann", "faiss_ivf", "hnswlib")
    expected = {(a, b, c) for a in libraries for b in (0.8, 0.95) for c in (1, cores)}
    assert cases == expected | {("exact", 1.0, threads) for threads in (1, cores)}
    scann = next(one for one in records if one["library"] == "scann")
    assert scann["settings"]["num_leaves"] == 50 and scann["settings"]["num_leaves_to_search"] <= 50
    ratios = found["scann_against_best_peer"]
    assert {(one["wanted_recall"], one["threads"]) for one in ratios} == {
        (wanted, threads) for wanted in (0.8, 0.95) for threads in (1, cores)
    }
    assert len(list((tmp_path / "plots").glob("*.svg"))) == len({1, cores})
    assert found["data"]["rows"]["num_rows"] == [2503, 211]


def test_the_best_peer_is_the_fastest_of_each_case(comparison):
    def record(library, qps, threads=1):
        case = {"data": "d", "wanted_recall": 0.9, "threads": threads}
        return {"library": library, "qps": qps, **case}

    records = [record("scann", 300), record("hnswlib", 100), record("faiss_ivf", 200)]
    records += [record("scann", 300, 2), record("hnswlib", 400, 2), record("faiss_ivf", 200, 2)]
    case = {"data": "d", "wanted_recall": 0.9}
    assert comparison.against_peers([*records, record("faiss_ivf", 9, threads=4)]) == [
        {**case, "threads": 1, "best_peer": "faiss_ivf", "ratio": 1.5},
        {**case, "threads": 2, "best_peer": "hnswlib", "ratio": 0.75},
    ]


def test_the_table_shows_every_case_and_the_fastest_library():
    def record(library, qps, threads, wanted):
        case = {"data": "d", "wanted_recall": wanted, "threads": threads}
        return {"library": library, "qps": qps, **case}

    records = [record("hnswlib", 1200.4, 1, 0.9), record("scann", 3000, 1, 0.9)]
    records += [record("scann", 2000, 2, 0.95), record("hnswlib", 4000, 2, 0.95)]
    ratios = [
        {"data": "d", "wanted_recall": 0.95, "threads": 2, "ratio": 0.5},
        {"data": "d", "wanted_recall": 0.9, "threads": 1, "ratio": 2.499},
    ]
    content = {"data": {"d": {"num_rows": [1000000, 5]}}, "results": records}
    assert ann.markdown({**content, "scann_against_best_peer": ratios}).splitlines() == [
        "| rows | threads | recall@10 | ScaNN | hnswlib | ScaNN / best |",
        "| --- | --- | --- | ---: | ---: | ---: |",
        "| d (1,000,000) | 1 | 0.9 | **3,000** | 1,200 | 2.50 |",
        "| d (1,000,000) | 2 | 0.95 | 2,000 | **4,000** | 0.50 |",
    ]


def test_more_effort_is_spent_until_the_recall_holds_for_all_queries(comparison):
    class Index:
        def search(self, queries, k, ef):
            return np.full((1, k), ef), None

    class Truth:
        queries = np.zeros((1, 1))

        def recall(self, found, k):
            return found[0, 0] / 200

    effort = comparison.Effort("ef", 150, least=10)
    one = comparison.Candidate("hnswlib", Path("x"), Index(), effort, {"ef": 99}, 0.5)
    assert one.confirmed(Truth(), 0.55).search == {"ef": 110}  # One more at a time.
    found = one.confirmed(Truth(), 0.9)
    assert (found.search, found.recall) == ({"ef": 150}, 0.75)


@pytest.mark.parametrize(
    "change, says",
    [
        (["--stage=build"], "--gallery and --queries: name both"),
        (["--stage=build", "--gallery={0}/rows.lance"], "name both, as often as one another"),
        (
            ["--stage=build", "--gallery={0}/rows.lance", "--queries={0}/other.lance"],
            "other.lance: column 'embedding_new' is of another space",
        ),
        (["--stage=search", "--output={0}/o.json"], "begin with --stage=build"),
        (["--stage=search"], "--output is empty"),
    ],
)
def test_bad_input_ends_with_one_line(tmp_path, comparison, capsys, change, says):
    gallery(tmp_path / "rows.lance", 30, 0)
    gallery(tmp_path / "other.lance", 5, 1, space="b")
    arguments = [argument.format(tmp_path) for argument in change]
    assert run(comparison, f"--workdir={tmp_path}/work", *arguments) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
