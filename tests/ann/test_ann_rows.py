"""Rows to measure approximate search with: what they are made of, and that they are made alike."""

import json
import sys

import numpy as np
import pytest

from fct_tf.common import cli
from fct_tf.gallery import table
from tests.builders import write_gallery


@pytest.fixture
def ann_rows(script):
    return script("ann_rows")


def gallery(path, count, *, seed=0, space="a", distance="l2"):
    generator = np.random.default_rng(seed)
    vectors = {
        "new": generator.normal(size=(count, 8)).astype(np.float32),
        "old": generator.normal(size=(count, 4)).astype(np.float32),
    }
    ids = [f"{path.stem}/{row}" for row in range(count)]
    spaces = {"new": space * 64, "old": "b" * 64}
    write_gallery(path, vectors, ids, ids=ids, spaces=spaces, distance=distance)
    return np.concatenate([vectors["new"], vectors["old"]], axis=1)


def read(path):
    return table.open_gallery(path).read(["new", "old"], with_labels=True)


@pytest.mark.parametrize("distance", ["l2", "cosine"])
def test_rows_are_mixtures_of_a_row_and_a_neighbour(tmp_path, ann_rows, monkeypatch, distance):
    stored = np.concatenate(
        [
            gallery(tmp_path / "train.lance", 211, seed=1, distance=distance),
            gallery(tmp_path / "test.lance", 103, seed=2, distance=distance),
        ]
    )
    monkeypatch.setattr(ann_rows, "BLOCK_ROWS", 97)
    names = [str(tmp_path / name) for name in ("train.lance", "test.lance")]
    settings = {"num_rows": 307, "num_queries": 41, "noise": 0.0, "neighbours": 1}
    outputs = [str(tmp_path / "rows.lance"), str(tmp_path / "queries.lance")]
    record = ann_rows.make(names, ["new", "old"], *outputs, **settings)
    rows, queries = read(outputs[0]), read(outputs[1])
    assert (len(rows), len(queries)) == (307, 41)
    assert len(set(rows.ids) | set(queries.ids)) == 348
    assert not set(rows.labels) & set(queries.labels)  # Of rows that are held apart.
    at = {f"train/{i}": i for i in range(211)} | {f"test/{i}": 211 + i for i in range(103)}
    apart = {at[label] for label in queries.labels}
    for made in (rows, queries):
        both = np.concatenate([made.vectors["new"], made.vectors["old"]], axis=1)
        for row, label in zip(both, made.labels, strict=True):
            own = stored[at[label]]
            if distance == "cosine":
                assert np.linalg.norm(row[:8]) == pytest.approx(1, abs=1e-5)
                assert np.linalg.norm(row[8:]) == pytest.approx(1, abs=1e-5)
                continue
            squared = ((stored[:, :8] - own[:8]) ** 2).sum(axis=1)
            squared[at[label]] = np.inf
            # The nearest row that is not held apart; some that are held apart are known.
            order = [place for place in np.argsort(squared) if place not in apart][:15]
            sides = stored[order] - own
            shares = sides @ (row - own) / (sides**2).sum(axis=1)
            off = np.abs(row - own - shares[:, None] * sides).max(axis=1)
            assert off[(shares >= -1e-6) & (shares <= 0.5 + 1e-6)].min() < 1e-4
    assert record["mixture"] == {"neighbours": 1, "noise": 0.0, "seed": 0}
    assert set(record["real"]) == set(record["made"])
    # The same seed makes the same rows, whatever the blocks; another makes others.
    again = [str(tmp_path / "again.lance"), str(tmp_path / "more.lance")]
    ann_rows.make(names, ["new", "old"], *again, **settings)
    np.testing.assert_array_equal(read(again[0]).vectors["new"], rows.vectors["new"])
    ann_rows.make(names, ["new", "old"], *again, **settings, seed=1, overwrite=True)
    assert not np.array_equal(read(again[0]).vectors["new"], rows.vectors["new"])


def test_the_mixture_nearest_to_the_real_rows_is_taken(ann_rows, monkeypatch):
    def profile(recall, dimension):
        curve = {"0.1": recall}
        return {
            "by_share_of_leaves": curve,
            "by_rows_reordered": curve,
            "intrinsic_dimension": dimension,
        }

    found = iter(
        # The real rows, then mixtures: two as near as curves can be told apart, two that are not.
        [profile(0.9, 6), profile(0.9, 12), profile(0.895, 5.5), profile(0.8, 6), profile(0.85, 6)]
    )
    monkeypatch.setattr(ann_rows, "profile", lambda *_: next(found))
    rows = ann_rows.Rows.__new__(ann_rows.Rows)
    rows.stored, rows.apart = np.zeros((10, 2), np.float32), np.arange(10) < 2
    rows.columns = [table.Column("new", 2, "a" * 64)]
    rows.first = lambda *_, **__: np.zeros((3, 2), np.float32)
    mixtures = [ann_rows.Mixture(5, noise) for noise in (0.0, 0.1, 0.2, 0.3)]
    chosen, record = ann_rows.choose(rows, mixtures)
    assert chosen.noise == 0.1 and record["made"]["intrinsic_dimension"] == 5.5


def test_the_dimension_of_rows_on_a_plane_is_two(ann_rows):
    generator = np.random.default_rng(0)
    plane = generator.uniform(size=(3000, 2)) @ generator.normal(size=(2, 16))
    assert ann_rows.intrinsic_dimension(plane.astype(np.float32)) == pytest.approx(2, abs=0.25)


@pytest.mark.parametrize(
    "change, says",
    [
        ({"rows": "{0}/none.lance"}, "none.lance: no gallery"),
        ({"columns": "newer"}, "no embedding column 'newer'"),
        ({"rows": "{0}/a.lance,{0}/other.lance"}, "other.lance: column 'new' is of another space"),
        ({"rows": "{0}/few.lance"}, "few.lance: 30 rows are too few to mix"),
        ({"output": "{0}/a.lance"}, "a.lance"),
        ({"record": "{0}"}, "is a directory"),
    ],
)
def test_bad_input_ends_with_one_line(tmp_path, ann_rows, monkeypatch, capsys, change, says):
    gallery(tmp_path / "a.lance", 300)
    gallery(tmp_path / "few.lance", 30)
    gallery(tmp_path / "other.lance", 50, space="c")
    named = {"rows": "{0}/a.lance", "columns": "new", "output": "{0}/rows.lance"}
    named |= {"queries": "{0}/queries.lance", **change}
    arguments = [f"--{name}={value.format(tmp_path)}" for name, value in named.items()]
    status = cli.call("", ann_rows.main, ann_rows.define_flags, ["ann_rows", *arguments])
    error = capsys.readouterr().err
    assert status == 2 and says in error and error.count("\n") == 1
    assert not (tmp_path / "rows.lance").exists() and not (tmp_path / "queries.lance").exists()


def test_the_command_prints_and_writes_how_near_the_rows_are(
    tmp_path, ann_rows, monkeypatch, capsys
):
    gallery(tmp_path / "a.lance", 400)
    record = tmp_path / "record.json"
    arguments = [f"--rows={tmp_path}/a.lance", "--columns=new", "--noise=0.3", "--neighbours=5"]
    arguments += [f"--{name}={tmp_path}/{name}.lance" for name in ("output", "queries")]
    arguments += ["--num_rows=50", "--num_queries=5", f"--record={record}"]
    monkeypatch.setattr(sys, "argv", ["ann_rows.py", *arguments])
    assert cli.call("", ann_rows.main, ann_rows.define_flags, ["ann_rows", *arguments]) == 0
    assert "of 360 rows, recall@10:" in capsys.readouterr().out
    found = json.loads(record.read_text())
    assert str(tmp_path) not in record.read_text()
    assert found["made"]["by_share_of_leaves"]["0.2"] > 0
