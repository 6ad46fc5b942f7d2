"""The tuner: the least effort that reaches a recall, and settings that are found and kept."""

import dataclasses
import json

import numpy as np
import pytest

from fct_tf import build_index
from fct_tf.ann import effort, index, tuner
from fct_tf.ann.settings import EXACT, Settings
from fct_tf.common import cli
from fct_tf.common.errors import InputError
from fct_tf.retrieval import exact
from tests.builders import write_gallery


def clustered(count=3001, dim=16, seed=0):
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(count // 10, dim)) * 3
    near = centres[generator.integers(0, len(centres), count)]
    return (near + generator.normal(size=(count, dim))).astype(np.float32)


RECALLS = {
    "more of both helps": lambda leaves, rows: 1 - 0.5 / leaves - 0.4 / rows,
    "rows alone": lambda leaves, rows: 1 - 1 / rows,
    "leaves alone": lambda leaves, rows: 1 - 1 / leaves,
    "few rows are a ceiling": lambda leaves, rows: min(1 - 0.3 / leaves, 0.9 + rows / 1000),
    "all at once": lambda leaves, rows: 1.0,
    "nothing helps": lambda leaves, rows: 0.5,
    "a step": lambda leaves, rows: 1.0 if leaves * rows >= 370 else 0.2 + leaves / 1000,
}


@pytest.mark.parametrize("wanted", [0.5, 0.9, 0.95, 0.99, 1.0])
@pytest.mark.parametrize("name", RECALLS)
def test_the_least_leaves_for_each_number_of_rows_are_those_that_trying_all_finds(name, wanted):
    counts, most, tried = [10, 20, 50, 100], 97, []

    def recall_of(search):
        tried.append(search)
        return RECALLS[name](search["leaves"], search["rows"])

    found = effort.Effort("leaves", most, "rows", counts).reaching(recall_of, wanted)

    expected, fewest = [], most + 1
    for rows in counts:
        reach = [n for n in range(1, most + 1) if RECALLS[name](n, rows) >= wanted]
        if reach and reach[0] < fewest:
            fewest = reach[0]
            expected.append(({"leaves": fewest, "rows": rows}, RECALLS[name](fewest, rows)))
    if expected:
        assert found == expected
    else:
        assert len(found) == 1 and found[0][1] < wanted
        top = max(RECALLS[name](n, rows) for n in range(1, most + 1) for rows in counts)
        assert found[0][1] >= top - 0.02
    # Trying all would be 388 searches.
    assert len(tried) <= 50


def test_searches_of_one_setting_and_of_none():
    graph = effort.Effort("ef", 500, least=10)
    assert graph.reaching(lambda search: search["ef"] / 100, 0.35) == [({"ef": 35}, 0.35)]
    assert graph.reaching(lambda search: 1.0, 0.9) == [({"ef": 10}, 1.0)]
    only_rows = effort.Effort("", 0, "rows", (10, 20, 40))
    assert only_rows.reaching(lambda search: search["rows"] / 20, 0.9) == [({"rows": 20}, 1.0)]
    assert effort.Effort("", 0).reaching(lambda search: 0.7, 0.9) == [({}, 0.7)]


@pytest.mark.parametrize(
    "distance, threads, own_queries", [("l2", 1, False), ("cosine", None, True)]
)
def test_settings_reach_the_recall_on_all_rows(distance, threads, own_queries, monkeypatch):
    rows = clustered()
    queries = clustered(200, seed=1) if own_queries else None
    monkeypatch.setattr(tuner, "SAMPLE_ROWS", 2500)
    monkeypatch.setattr(effort, "_SECONDS", 0.0)
    found = tuner.tune(rows, distance, 0.9, k=7, queries=queries, threads=threads, seed=3)
    assert found.reached and found.recall >= 0.9 and found.qps > 0 and found.builds > 2
    assert (found.sample_rows, found.num_rows, found.dim) == (2500, 3001, 16)
    # The settings are those of the searcher, and a search with them finds what was told.
    assert found.searcher.settings == found.settings and found.searcher.num_rows == 3001
    asked = rows if queries is None else queries
    near, _ = found.searcher.search(asked, 8)
    own = np.arange(len(asked)) if queries is None else np.full(len(asked), -1)
    true, _ = exact.search(asked, rows, 7, distance, own)
    kept = [[row for row in some if row != one][:7] for some, one in zip(near, own, strict=True)]
    recall = np.mean([len(set(a) & set(b)) / 7 for a, b in zip(kept, true, strict=True)])
    assert recall == pytest.approx(found.recall, abs=0.03)
    # Kept with the machine it was found on.
    kept_as = json.loads(json.dumps(found.to_json()))
    assert Settings.from_json(kept_as["settings"]) == found.settings
    assert kept_as["machine"]["processor"] and kept_as["machine"]["versions"]["scann"]
    assert kept_as["machine"]["cores"] >= 1 and "searcher" not in kept_as


def noise(count=2503, dim=32):
    return np.random.default_rng(0).normal(size=(count, dim)).astype(np.float32)


def test_a_recall_that_is_out_of_reach_is_told_with_the_best_there_is(monkeypatch, caplog):
    measured = effort.Case.recall
    monkeypatch.setattr(effort.Case, "recall", lambda *args: min(0.7, measured(*args)))
    monkeypatch.setattr(effort, "_SECONDS", 0.0)
    with caplog.at_level("INFO", logger="absl"):
        found = tuner.tune(noise(), "l2", 0.8, seconds=0)
    assert (found.reached, found.recall, found.builds) == (False, 0.7, 1)
    assert "recall@10 of 0.8 was not reached: the best is 0.7000" in caplog.text
    assert "no time for more builds: 1 were tried" in caplog.text


def test_where_codes_do_not_reach_the_recall_rows_are_compared_themselves(monkeypatch):
    monkeypatch.setattr(effort, "REORDERED", (1,))
    monkeypatch.setattr(effort, "_SECONDS", 0.0)
    monkeypatch.setattr("fct_tf.ann.fitting.LEAST_RECALL", 0.0)
    found = tuner.tune(noise(), "l2", 0.999)
    assert found.reached and found.settings.score == "brute_force"


@pytest.mark.parametrize("count", [503, 11, 5, 1])
def test_few_rows_are_searched_exactly(count):
    found = tuner.tune(clustered(503)[:count], "l2", 0.95)
    assert (found.settings, found.recall, found.reached) == (EXACT, 1.0, True)


@pytest.mark.parametrize("distance", ["l2", "cosine"])
@pytest.mark.parametrize("num_rows", [2000, 2503, 1_000_000])
def test_every_change_that_is_tried_fits_the_rows(num_rows, distance):
    for dim in (1, 3, 64):
        start = Settings.for_rows(num_rows, dim, distance)
        for directions in tuner.space(start, num_rows, dim, distance):
            for direction in directions:
                settings = start
                for change in direction:
                    settings = tuner._changed(settings, change)
                    settings.check(num_rows, dim, distance)


@pytest.mark.parametrize("changeable", [True, False])
def test_rows_can_be_replaced_unless_that_is_given_up(changeable, monkeypatch):
    # Each build looks faster than the one before it.
    monkeypatch.setattr(tuner, "_faster", lambda case, other, best: 2.0)
    monkeypatch.setattr(effort.Case, "race", lambda self, builds: [1.0] * len(builds))
    found = tuner.tune(clustered(2003), "l2", 0.5, changeable=changeable)
    assert found.settings.can_change == changeable
    assert found.settings.reordering_data == ("bfloat16" if changeable else "int8")
    assert found.settings.num_leaves == 2003 // 8


@pytest.mark.parametrize(
    "recall, k, says",
    [(0, 10, "above 0"), (1.1, 10, "1 at most"), (float("nan"), 10, "recall=nan")]
    + [(0.9, 0, "k=0"), (0.9, 2003, "from 1 to 2002 for 2003 rows")],
)
def test_what_cannot_be_wanted_is_refused(recall, k, says):
    with pytest.raises(InputError, match=says):
        tuner.tune(clustered(2003), "l2", recall, k=k)


def test_an_index_of_a_gallery_has_the_settings_that_were_found(tmp_path, monkeypatch):
    monkeypatch.setattr(effort, "_SECONDS", 0.0)
    vectors = clustered(2503)
    gallery = write_gallery(tmp_path / "g.lance", {"new": vectors})
    ids, space = gallery.read([]).ids, gallery.column("new").space
    output = tmp_path / "g.index"
    arguments = [f"--gallery={tmp_path}/g.lance", "--column=new", f"--output={output}"]
    door = ["build_index", *arguments, "--recall=0.9"]
    assert cli.call("", build_index.main, build_index.define_flags, door) == 0
    opened = index.open_index(output)
    found = opened.manifest["training"]["found"]
    assert found["recall"] >= found["wanted_recall"] == 0.9 and found["machine"]["processor"]
    assert opened.searcher.settings == Settings.from_json(found["settings"])
    near = opened.search(vectors, 10, space=space, exclude=ids).ids
    true, _ = exact.search(vectors, vectors, 10, "l2", np.arange(2503))
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(near, ids[true], strict=True)])
    assert recall == pytest.approx(found["recall"], abs=0.03)


def test_leaves_of_a_sample_are_as_many_for_all_rows_by_the_square_root():
    settings = dataclasses.replace(
        Settings.for_rows(10_000, 16), num_leaves=100, reordering_data="bfloat16"
    )
    large = tuner._resized(settings, 10_000, 1_000_000, 16)
    assert (large.num_leaves, large.reordering_data) == (1000, "bfloat16")
    assert large.training_sample_size == 250_000
    large.check(1_000_000, 16, "l2")
