"""The door backfilling_curve, its records, and what the report makes of them."""

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from fct_tf import backfilling_curve
from fct_tf.backfill import calibration, evaluate
from fct_tf.backfill import curves as computed
from fct_tf.common.files import read_json
from fct_tf.gallery import table
from fct_tf.report import backfilling, backfilling_plots, page, plots
from fct_tf.retrieval import exact
from fct_tf.upgrade import sample

ROWS = 67


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A gallery with T(old), its log-variance, the new column, and a kind per row."""
    directory = tmp_path_factory.mktemp("curve")
    generator = np.random.default_rng(0)
    ids = np.array([f"row{i}" for i in range(ROWS)], object)
    classes = generator.integers(0, 6, ROWS)
    labels = np.array([f"c{i}" for i in classes], object)
    labels[:5] = None
    centres = generator.normal(size=(6, 5))
    new = (centres[classes] + 0.7 * generator.normal(size=(ROWS, 5))).astype(np.float32)
    transformed = (new + generator.normal(size=new.shape)).astype(np.float32)
    column = table.Column("new", dim=5, space="n" * 64)
    rows = table.Rows(ids, labels, {"new": new})
    gallery = table.create(str(directory / "g.lance"), [rows], [column])
    made = {
        "fct": transformed,
        "fct_log_variance": generator.normal(size=ROWS).astype(np.float32),
        "fct_origin": np.full(ROWS, "transformed", object),
        "kind": np.array(["rare" if i % 4 == 0 else "common" for i in range(ROWS)], object),
    }
    number = {name: at for at, name in enumerate(ids)}

    def compute(part):
        at = [number[name] for name in part.ids]
        return {name: values[at] for name, values in made.items()}

    fields = [
        pa.field("fct_log_variance", pa.float32()),
        pa.field("fct_origin", pa.string()),
        pa.field("kind", pa.string()),
    ]
    fct = table.Column("fct", dim=5, space="n" * 64, kind="transformed")
    table.add_column(gallery, fct, compute, ["new"], extra_fields=fields)
    return directory / "g.lance", ids, labels, new, {**made, "transformed": transformed}


def seed_of_order(seed, number):
    return int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0])


def call(run_door, path, output, *more):
    return run_door(
        backfilling_curve,
        f"--gallery={path}",
        "--column=fct",
        "--target_column=new",
        f"--output={output}",
        *more,
    )


def test_records_of_every_policy(stored, run_door, tmp_path, capsys):
    path, ids, labels, new, made = stored
    backwards = tmp_path / "order.txt"
    backwards.write_text("".join(f"{name}\n" for name in ids[::-1]))
    status = call(
        run_door,
        path,
        tmp_path / "curve.json",
        f"--policies=uncertainty,random,distance,file:{backwards}",
        "--random_orders=3",
        "--seed=11",
        "--ks=1,3",
        f"--plot={tmp_path / 'plots' / 'curve.svg'}",
    )
    told = capsys.readouterr().out
    assert status == 0 and "order.txt" in told and "of the gap in mAP" in told
    assert f"fct, predicted variance against squared error of {ROWS} transformed rows" in told
    assert (tmp_path / "plots" / "curve.svg").read_text().startswith("<?xml")
    records = read_json(tmp_path / "curve.json")
    assert [(record["policy"], record["order"]) for record in records] == [
        ("uncertainty", None),
        *(("random", number) for number in range(3)),
        ("distance", None),
        (f"file:{backwards}", None),
    ]
    moved = np.linalg.norm(made["transformed"] - new, axis=1)
    orders = [
        np.argsort(-made["fct_log_variance"]),
        *(sample.order(ids, seed_of_order(11, number)) for number in range(3)),
        np.argsort(-moved),
        np.arange(ROWS)[::-1],
    ]
    for record, order in zip(records, orders, strict=True):
        assert (record["method"], record["seed"], record["distance"]) == ("fct", 11, "l2")
        assert (record["num_queries"], record["num_queries_without_label"]) == (ROWS - 5, 5)
        assert (record["num_gallery"], record["num_self_removed"]) == (ROWS, ROWS - 5)
        assert record["target"]["column"] == record["query"]["column"] == "new"
        assert list(record["auc"]) == ["1", "3", "map"] and len(record["curve"]) == 22
        assert "groups" not in record and record["corrected"] is False
        assert ("calibration" in record) == (record["policy"] == "uncertainty")
        precision = []
        for point in record["curve"]:
            mixed = made["transformed"].copy()
            mixed[order[: point["rows"]]] = new[order[: point["rows"]]]
            found = exact.per_query(new, ids, labels, mixed, ids, labels)
            precision.append(np.nanmean(found.average_precision))
            assert point["map"] == pytest.approx(precision[-1], abs=1e-6)
            assert point["cmc"]["3"] == np.mean(found.rank <= 3)
        assert record["auc"]["map"] == pytest.approx(np.mean(precision), abs=1e-6)


def test_the_order_of_the_stored_rows_does_not_matter(stored, tmp_path):
    path, ids, labels, new, made = stored
    coarse = np.round(made["transformed"])  # Ties among the distances, and among the orders'.
    found = []
    for name, at in (("a", np.arange(ROWS)), ("b", np.random.default_rng(3).permutation(ROWS))):
        columns = [table.Column(column, dim=5, space="n" * 64) for column in ("fct", "new")]
        vectors = {"fct": coarse[at], "new": np.round(new)[at]}
        rows = table.Rows(ids[at], labels[at], vectors)
        gallery = table.create(str(tmp_path / f"{name}.lance"), [rows], columns)
        found.append(
            evaluate.evaluate(gallery, "new", gallery, "fct", "new", ("random", "distance"))
        )
    for a, b in zip(*found, strict=True):
        assert a["auc"]["1"] == pytest.approx(b["auc"]["1"], abs=1e-12)
        assert a["auc"]["map"] == pytest.approx(b["auc"]["map"], abs=1e-12)


@pytest.mark.parametrize("how", ["column", "file"])
def test_groups(stored, run_door, tmp_path, capsys, how):
    path, _, labels, _, made = stored
    group = np.where(labels == None, None, made["kind"])  # noqa: E711
    groups = "column:kind"
    if how == "file":
        file = tmp_path / "groups.tsv"
        file.write_text("".join(f"c{i}\t{'rare' if i < 2 else 'common'}\n" for i in range(6)))
        group = np.array([{"c0": "rare", "c1": "rare"}.get(label, "common") for label in labels])
        group = np.where(labels == None, None, group)  # noqa: E711
        groups = str(file)
    output = tmp_path / "curve.json"
    assert call(run_door, path, output, "--policies=distance", f"--groups={groups}") == 0
    record = read_json(output)[0]
    assert list(record["groups"]) == ["common", "rare"]
    for name, values in record["groups"].items():
        assert values["num_queries"] == np.sum(group == name)
    apart = abs(record["groups"]["rare"]["auc"]["1"] - record["groups"]["common"]["auc"]["1"])
    assert record["gap"]["auc"]["1"] >= apart - 1e-12
    assert "2 groups: AUC mAP from" in capsys.readouterr().out


def test_query_table_of_its_own(stored, run_door, tmp_path):
    path, ids, labels, new, _ = stored
    column = table.Column("query", dim=5, space="n" * 64)
    rows = table.Rows(ids[10:40], labels[10:40], {"query": new[10:40]})
    table.create(str(tmp_path / "q.lance"), [rows], [column])
    more = [f"--query={tmp_path / 'q.lance'}", "--query_column=query", "--distance=cosine"]
    assert call(run_door, path, tmp_path / "a.json", *more, "--policies=distance") == 0
    record = read_json(tmp_path / "a.json")[0]
    assert (record["num_queries"], record["num_self_removed"]) == (30, 30)
    asked = (new[10:40], ids[10:40], labels[10:40])
    found = exact.per_query(*asked, new, ids, labels, "cosine")
    assert record["curve"][21]["map"] == pytest.approx(np.mean(found.average_precision), abs=1e-5)


@pytest.mark.parametrize(
    "flag, message",
    [
        ("--policies=random,certainty", "unknown policy 'certainty'"),
        ("--policies=random,random", "named twice"),
        ("--policies=", "name at least one"),
        ("--policies=file:/nowhere", "/nowhere: no such file"),
        ("--column=old", "no embedding column 'old'"),
        ("--groups=column:new", "groups=new: no column of strings"),
        ("--groups=/nowhere", "/nowhere: no such file"),
        ("--ks=one", "whole numbers"),
        ("--ks=0", "--ks=0: whole numbers from 1"),
        ("--plot=curve.txt", ".svg, .png or .pdf"),
        ("--random_orders=0", "random_orders"),
    ],
)
def test_bad_flags(stored, run_door, tmp_path, capsys, flag, message):
    assert call(run_door, stored[0], tmp_path / "curve.json", flag) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and message in error[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "flag, lines, message",
    [
        ("--policies=file:", ["row0", "nobody"], "line 2: the gallery has no row 'nobody'"),
        ("--policies=file:", ["row0", "row1"], "id 'row2' is not in"),
        ("--policies=file:", [*(f"row{i}" for i in range(ROWS)), "row3"], "more than once"),
        ("--groups=", ["c0 rare"], "line 1: expected label<TAB>group"),
        ("--groups=", ["c0\trare", "c0\tcommon"], "line 2: label 'c0' has two groups"),
        ("--groups=", ["c0\trare"], "no group for the label"),
    ],
)
def test_bad_files(stored, run_door, tmp_path, capsys, flag, lines, message):
    file = tmp_path / "file"
    file.write_text("\n".join(lines) + "\n")
    assert call(run_door, stored[0], tmp_path / "curve.json", f"{flag}{file}") == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and message in error[0]
    assert not (tmp_path / "curve.json").exists()


def test_uncertainty_needs_a_log_variance(stored, run_door, tmp_path, capsys):
    path = stored[0]
    status = run_door(
        backfilling_curve,
        f"--gallery={path}",
        "--column=new",
        "--target_column=fct",
        "--policies=uncertainty",
        f"--output={tmp_path / 'curve.json'}",
    )
    assert status == 2 and "no log-variance" in capsys.readouterr().err
    gallery = table.open_gallery(str(path))
    assert evaluate.has_uncertainty(gallery, "fct")
    assert not evaluate.has_uncertainty(gallery, "new")


def record(policy, maps, method="fct", seed=0, order=None, **changes):
    """A record whose top-1 is 0.2 above its mAP at every point."""
    points = [
        {"share": at / 21, "rows": at, "cmc": {"1": value + 0.2}, "map": float(value)}
        for at, value in enumerate(maps)
    ]
    auc = computed.auc(points, (1,))
    made = {"method": method, "policy": policy, "seed": seed, "order": order}
    return {**made, "auc": auc, "curve": points, **changes}


LINE = np.linspace(0.3, 0.51, 22)


def test_reach_is_interpolated():
    shares = np.arange(22) / 21
    assert backfilling.reach(shares, shares, 0.5) == pytest.approx(0.5)
    assert backfilling.reach(shares, shares, 1.0) == pytest.approx(1.0)
    assert backfilling.reach(shares, shares**2, 0.25) == pytest.approx(0.5, abs=0.002)
    first = np.array([0, 0.8, *np.linspace(0.4, 1, 20)])
    assert backfilling.reach(shares, first, 0.4) == pytest.approx(0.5 / 21)


def test_sentences():
    straight, *_ = backfilling.told(backfilling.rows([record("uncertainty", LINE)]))
    assert straight.startswith("fct, uncertainty: re-embed 50 % to recover 50 % and 90 % to ")
    assert "of the gap in mAP (from 30.00 to 51.00 %); " in straight
    assert "in top-1 (from 50.00 to 71.00 %)" in straight
    dipping = LINE.copy()
    dipping[1] = 0.25
    assert "falling to 25.00 % first" in backfilling.sentence(
        backfilling.rows([record("random", dipping)])[0]
    )
    none = backfilling.sentence(backfilling.rows([record("random", LINE[::-1])])[0])
    assert "mAP has no gap to recover (from 51.00 to 30.00 %)" in none
    flat = backfilling.rows([record("random", np.full(22, 0.4))])[0]
    assert "no gap" in backfilling.sentence(flat)
    nothing = record("random", LINE, auc={"1": None, "map": None})
    assert backfilling.told(backfilling.rows([nothing])) == ["fct, random: nothing was measured."]


def test_deviation_over_orders_or_seeds():
    offsets = (0.0, 0.01, 0.05)
    records = [record("random", LINE + x, order=at) for at, x in enumerate(offsets)]
    one, other = backfilling.rows([*records, record("distance", LINE)])
    mean, std = one.auc("mAP")
    assert mean == pytest.approx(0.405 + 0.02) and std == pytest.approx(np.std(offsets, ddof=1))
    assert other.auc("mAP")[1] is None and one.over == "random orders"
    text = backfilling.text([*records, record("distance", LINE)])
    assert "42.50 +/- 2.65" in text and "  -2.00 / -2.00\n" in text
    assert "standard deviation over 3 random orders" in text
    # Of several seeds, each counts once, however many orders it has.
    seeds = [*records, *(record("random", LINE + 0.1, seed=7, order=at) for at in range(3))]
    row = backfilling.rows(seeds)[0]
    assert row.over == "seeds" and row.curves["mAP"].shape == (2, 22)
    assert row.auc("mAP")[1] == pytest.approx(np.std([0.02, 0.1], ddof=1))


def test_gains_over_random_orders_of_the_same_models():
    """Seeds differ more than policies: what is compared is each seed with itself."""
    offsets, gains = {0: 0.0, 1: 0.2}, {0: 0.01, 1: 0.03}
    records = []
    for seed, level in offsets.items():
        for order, x in enumerate((-0.02, 0.02)):
            records.append(record("random", LINE + level + x, seed=seed, order=order))
        records.append(record("ranks", LINE + level + gains[seed], seed=seed))
        records.append(record("ranks", LINE + level - 0.01, seed=seed, corrected=True))
    random, ranks, corrected = made = backfilling.rows(records)
    assert backfilling.over_random(random, made, "mAP") is None
    found = backfilling.over_random(ranks, made, "mAP")
    assert found == pytest.approx((0.02, np.std([0.01, 0.03], ddof=1)))
    assert backfilling.over_random(corrected, made, "mAP") == pytest.approx((-0.01, 0))
    told = backfilling.markdown(records)
    assert "| over random (top-1, mAP) |" in told
    assert "| +2.00 ± 1.41 / +2.00 ± 1.41 | 50 % / 90 %" in told
    assert "over random: points above random orders of the same models." in told
    # One seed has no deviation; other models, or none, are nothing to compare with.
    one = [entry for entry in records if entry["seed"] == 0]
    assert "| +1.00 / +1.00 |" in backfilling.markdown(one)
    assert "+1.00 / +1.00" in backfilling.text(one)
    alone = [entry for entry in records if entry["policy"] == "ranks" or entry["seed"] == 0]
    for kept in (alone, [entry for entry in records if entry["policy"] == "ranks"]):
        assert "over random" not in backfilling.markdown(kept)


def test_markdown_and_figures(tmp_path):
    records = [record("random", LINE), record("file:/a/b|c.txt", LINE)]
    told = backfilling.markdown(records)
    header = ["AUC top-1", "AUC mAP", "over random (top-1, mAP)", "50 / 90 % of gap, mAP"]
    assert f"| {' | '.join(header)} | 50 / 90 % of gap, top-1 |" in told
    assert "| fct | b\\|c.txt | 60.50 | 40.50 | +0.00 / +0.00 | 50 % / 90 % | 50 % / 90 % |" in told
    assert "re-embed 50" not in told  # As many sentences as rows say no more.
    assert "| n/a | n/a |" in backfilling.markdown([record("random", LINE[::-1])])
    assert backfilling.markdown([]) == backfilling.text([]) == "no backfilling curves"
    for theme in plots.THEMES:
        for made in (records, [record("random", LINE[::-1])]):
            path = tmp_path / f"{theme}.svg"
            backfilling_plots.curves(backfilling.rows(made), path, theme)
            assert "<svg" in path.read_text()
            path.unlink()


def test_page_has_a_section_only_with_curves(tmp_path):
    records = [record("random", LINE, "a<b>"), record("uncertainty", LINE, "other")]
    for given in ((), records):
        index = page.write(tmp_path / "report", title="t", records=[], backfilling=given)
        html = index.read_text()
        assert ("<h2>Backfilling</h2>" in html) == bool(given)
        # Two methods, two metrics, two themes.
        assert len(list(index.parent.glob("backfilling-*.svg"))) == (8 if given else 0)
    assert "a&lt;b&gt;, random: re-embed" in html and "backfilling-map-1-dark.svg" in html
    assert "<b>" not in html and "AUC mAP" in html


def test_a_figure_has_at_most_five_lines_and_random_orders_are_in_each():
    names = ["random", "uncertainty", "ranks", "distance", *(f"file:{k}.txt" for k in range(5))]
    made = backfilling.rows([record(name, LINE, method) for name in names for method in "ab"])
    figures = backfilling_plots.figures(made)
    assert [{row.method for row in figure} for figure in figures] == [{"a"}] * 2 + [{"b"}] * 2
    lines = [[row.name for row in figure] for figure in figures[:2]]
    assert lines[0] == ["random", "uncertainty", "ranks", "distance", "0.txt"]
    assert lines[1] == ["random", "1.txt", "2.txt", "3.txt", "4.txt"]
    for figure in figures:
        looks = backfilling_plots.styles(figure)
        assert len({look.light for look in looks.values()}) == len(figure) == len(looks)
    alone = backfilling.rows([record(name, LINE) for name in ("ranks", "random")][:1])
    assert [len(figure) for figure in backfilling_plots.figures(alone)] == [1]
    # What all panels of a metric span, with 10 % at both ends.
    low, high = backfilling_plots.limits(made, "mAP")
    assert (low, high) == pytest.approx((100 * LINE[0] - 10 * (LINE[-1] - LINE[0]),
                                         100 * LINE[-1] + 10 * (LINE[-1] - LINE[0])))  # fmt: skip


def test_page_tells_the_best_order_that_can_be_had(tmp_path):
    """Half of the gap at half of the rows, for a line; of a curve above it, sooner."""
    start, end = LINE[0], LINE[-1]
    shares = np.linspace(0, 1, len(LINE))
    early = list(start + (end - start) * np.minimum(2 * shares, 1))
    best = list(start + (end - start) * np.minimum(10 * shares, 1))
    records = [record("random", LINE), record("ranks", early), record("distance", best)]
    index = page.write(tmp_path / "report", title="t", records=[], backfilling=records)
    assert (
        "<p>fct, ranks: half of the gap in top-1 is recovered with 25 % of the rows "
        "re-embedded, 90 % of it with 45 %; in random order with 50 % and 90 %.</p>"
    ) in index.read_text()
    flat = [record("ranks", [start] * len(LINE))]
    index = page.write(tmp_path / "report", title="t", records=[], backfilling=flat)
    assert "half of the gap" not in index.read_text()
    nothing = [{**record("random", LINE), "auc": {"1": None, "map": None}}]
    index = page.write(tmp_path / "report", title="t", records=[], backfilling=nothing)
    assert "nothing was measured" in index.read_text()


def test_page_shows_how_well_variances_tell_the_error(tmp_path):
    s = np.random.default_rng(0).normal(size=80)
    known = {"calibration": calibration.measure(s, np.exp(s))}
    records = [record("uncertainty", LINE, seed=seed, **known) for seed in (0, 1)]
    records.append(record("random", LINE, corrected=True))
    index = page.write(tmp_path / "report", title="t", records=[], backfilling=records)
    html = index.read_text()
    assert (index.parent / "calibration-0-dark.svg").exists()
    assert (
        "predicted variance against squared error of 80 transformed rows, mean of 2 seeds" in html
    )
    assert "rank correlation 1.00; predicted over observed 1.00 in the mean" in html
    assert "random, rest corrected" in html and "rest corrected: by the rows" in html
    one = backfilling.told(backfilling.rows(records[:1]))
    assert one[-1].startswith("fct, predicted variance")


def test_imports_no_tensorflow():
    code = (
        "import sys, fct_tf.backfilling_curve, fct_tf.report.backfilling_plots; "
        "assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
