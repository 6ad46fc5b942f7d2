"""A whole model change: every stage runs, a finished one is skipped, a changed one is not."""

import re
from pathlib import Path

import numpy as np
import pytest

from fct_tf import config as schema
from fct_tf import study
from fct_tf.common.files import read_json
from fct_tf.experiments import study as study_run
from fct_tf.gallery import table
from fct_tf.models import artifact, backbone
from fct_tf.report import page
from fct_tf.retrieval import exact
from tests import tiny


def experiment(images):
    """The tiny experiment, and one of its transformations corrected by a quarter of the gallery."""
    config = tiny.experiment(images, epochs=1)
    section = schema.transformation(train_epochs=1, warmup_epochs=1, batch_size=8)
    section.base, section.pairs.share = "fct", 0.25
    config.transformations.fct_pairs = section
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A study that has run once: its experiment, working directory and records."""
    directory = tmp_path_factory.mktemp("study")
    config = experiment(tiny.image_folder(directory / "images"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backbone, "build", tiny.one_layer)
        records = study_run.study(config, directory / "run", "python -m fct_tf.study")
        yield config, directory / "run", records


def stages(workdir):
    """When each stage last changed its result."""
    paths = [
        *workdir.glob("seed_*/*/metrics.jsonl"),
        *workdir.glob("seed_*/evaluation/*/results.json"),
    ]
    tables = workdir.glob("seed_*/rows/*/gallery.lance")
    versions = {path: len(list(path.glob("_versions/*"))) for path in tables}
    return {path: path.stat().st_mtime_ns for path in paths} | versions


def test_records_follow_the_contract(finished):
    config, workdir, records = finished
    assert read_json(workdir / "results.json") == records
    assert [record["case"] for record in records] == [
        "old/old",
        "new/old",
        "new/T(old) fct",
        "new/T(old) fct_no_side_info",
        "new/T(old) fct_pairs",
        "new/new",
        "side_info/side_info",
        "old/old (remaining 75 %)",
        "new/T(old) fct_pairs (remaining 75 %)",
        "new/new (remaining 75 %)",
    ]
    for record in records:
        remaining = record["case"].endswith("%)")
        assert record["num_gallery"] == record["num_queries"] == (18 if remaining else 24)
        assert record["seed"] == 0
        assert set(record["query"]) >= {"path", "version", "column", "space", "model"}
        assert 0 <= record["cmc"]["1"] <= record["cmc"]["5"] <= 1
        assert 0 <= record["map"] <= 1
    assert records[2]["method"] == "fct"
    run = read_json(workdir / "run.json")
    assert run["command"] == "python -m fct_tf.study"
    assert run["config"]["models"]["new"]["train_epochs"] == 1
    assert "tensorflow" in run["versions"]


def test_pairs_are_backfilled_or_left_out(finished):
    _, workdir, records = finished
    rows = workdir / "seed_0" / "rows"
    names, fields = ["embedding_new", "embedding_fct", "embedding_fct_pairs"], "embedding_fct_pairs"
    pairs = table.open_gallery(str(rows / "pairs_0.25_random" / "pairs.lance"))
    gallery = table.open_gallery(str(rows / "gallery" / "gallery.lance"))
    stored = gallery.read(names, with_labels=True, fields=[f"{fields}_origin"])
    known = np.isin(stored.ids, pairs.read([]).ids)
    assert known.sum() == 6
    np.testing.assert_array_equal(stored.fields[f"{fields}_origin"] == "backfilled", known)
    new, fct, corrected = (stored.vectors[name] for name in names)
    np.testing.assert_array_equal(corrected[known], new[known])
    chosen = read_json(workdir / "seed_0" / "fct_pairs" / "artifact" / "model.json")["chosen"]
    helped = chosen["correction"]["mse_after"] < chosen["correction"]["mse_before"]
    assert helped == (np.abs(corrected - fct)[~known].max() > 1e-5)
    found = {record["case"]: record for record in records}
    for case, query, column in (
        ("old/old", "embedding_old", "embedding_old"),
        ("new/T(old) fct_pairs", "embedding_new", "embedding_fct_pairs"),
        ("new/new", "embedding_new", "embedding_new"),
    ):
        both = gallery.read([query, column], with_labels=True)
        for note, kept in (("", known | True), (" (remaining 75 %)", ~known)):
            names = (both.ids[kept], both.labels[kept])
            sides = [both.vectors[query][kept], both.vectors[column][kept]]
            measured = exact.per_query(sides[0], *names, sides[1], *names)
            record = found[case + note]
            assert record["map"] == pytest.approx(np.nanmean(measured.average_precision))
            assert record["cmc"]["1"] == pytest.approx(np.mean(measured.rank == 1))
    remaining, whole = (found[f"new/T(old) fct_pairs{n}"] for n in (" (remaining 75 %)", ""))
    assert (whole["pairs"], whole["scoring"]) == (0.25, "backfilled")
    assert (remaining["pairs"], remaining["scoring"]) == (0.25, "remaining")


def test_report(finished):
    _, workdir, _ = finished
    html = (workdir / "report" / "index.html").read_text()
    assert "new/T(old)" in html and "<img" in html and "http://" not in html


def test_finished_stages_are_skipped(finished, monkeypatch):
    config, workdir, records = finished
    monkeypatch.setattr(page, "write", lambda *_, **__: None)  # It is written each time.
    before = stages(workdir)
    assert study_run.study(config, workdir) == records
    assert stages(workdir) == before


def test_door_prints_the_table(finished, run_door, tmp_path, capsys, monkeypatch):
    _, workdir, records = finished
    images, calls = workdir.parent / "images", []
    monkeypatch.setattr(study, "study", lambda *given: calls.append(given) or records)
    config = tiny.experiment_file(tmp_path / "e.py", images, epochs=1)
    assert run_door(study, f"--config={config}", f"--workdir={workdir}") == 0
    ((read, at, *_),) = calls
    assert read.to_dict() == tiny.experiment(images, epochs=1).to_dict() and Path(at) == workdir
    shown = capsys.readouterr().out
    assert "new/T(old) fct" in shown and "index.html" in shown
    assert shown.index("report: ") < shown.index("open the report:") < shown.index("serve it:")
    served = re.search(r"export_serving --model=(\S+)", shown)[1]
    assert artifact.load(served).name in read.transformations


def test_stages_say_what_they_are_for_in_the_order_of_their_lives(finished, caplog, monkeypatch):
    config, workdir, _ = finished
    monkeypatch.setattr(page, "write", lambda *_, **__: None)
    with caplog.at_level("INFO", logger="absl"):
        study_run.study(config, workdir)
    told = [line.partition(":") for line in caplog.messages]
    order = ["old", "side_info", "new", "rows", "fct", "evaluation"]
    assert [name for name, _, what in told if name in order and what] == order
    said = {name: what for name, _, what in told}
    assert "stored gallery" in said["old"] and "to take over" in said["new"]
    assert "for models to come" in said["side_info"] and "none is read" in said["rows"]
    aim = "learning to turn old embeddings and side-information into new embeddings"
    assert said["fct"] == f" {aim}"


@pytest.mark.slow
def test_a_changed_transformation_repeats_only_what_depends_on_it(finished):
    config, workdir, _ = finished
    before = stages(workdir)
    config.transformations.fct.hidden = 24
    try:
        study_run.study(config, workdir)
    finally:
        config.transformations.fct.hidden = 16
    after = stages(workdir)
    changed = {str(path.relative_to(workdir)) for path in after if after[path] != before.get(path)}
    assert changed == {
        "seed_0/fct/metrics.jsonl",
        "seed_0/rows/gallery/gallery.lance",
        "seed_0/evaluation/new_T_old_fct/results.json",
        # What corrects it follows.
        "seed_0/evaluation/new_T_old_fct_pairs/results.json",
        "seed_0/evaluation/new_T_old_fct_pairs_remaining_75/results.json",
    }


@pytest.mark.slow
def test_backfilling_curves_change_no_other_stage(finished):
    config, workdir, _ = finished
    records = study_run.study(config, workdir)  # Other tests have changed a setting.
    before = stages(workdir)
    settings = {path: path.read_text() for path in workdir.glob("seed_*/**/settings.json")}
    section, output = config.evaluation.backfilling, workdir / "backfilling.json"
    assert not output.exists()
    section.policies, section.random_orders = ("uncertainty", "random", "distance"), 2
    try:
        assert study_run.study(config, workdir) == records
        assert stages(workdir) == before
        assert all(path.read_text() == text for path, text in settings.items())
        curves = read_json(output)
        path = workdir / "seed_0" / "evaluation" / "backfilling_fct" / "curves.json"
        made = path.stat().st_mtime_ns
        html = (workdir / "report" / "index.html").read_text()
        assert "<h2>Backfilling</h2>" in html and "fct_no_side_info, random: " in html
        study_run.study(config, workdir)
        assert path.stat().st_mtime_ns == made and read_json(output) == curves
        section.random_orders, section.corrected = 1, ("random",)
        study_run.study(config, workdir)
        kinds = [(record["policy"], record["corrected"]) for record in read_json(output)]
        assert kinds == 2 * [("random", False), ("distance", False), ("random", True)]
        section.corrected = ()
        study_run.study(config, workdir)
        assert len(read_json(output)) == 4
    finally:
        section.policies, section.random_orders, section.corrected = (), 5, ()
    # No transformation here has a log-variance, and those with pairs are left out.
    orders = [("random", 0), ("random", 1), ("distance", None)]
    names = ("fct", "fct_no_side_info")
    assert [(record["method"], record["policy"], record["order"]) for record in curves] == [
        (name, *order) for name in names for order in orders
    ]
    found = {record["case"]: record for record in records}
    for record in curves:
        assert record["seed"] == 0
        for point, case in ((0, record["case"]), (21, "new/new")):
            end = record["curve"][point]
            assert end["map"] == pytest.approx(found[case]["map"], abs=1e-3)
            assert end["cmc"]["5"] == pytest.approx(found[case]["cmc"]["5"], abs=0.05)
    study_run.study(config, workdir)
    assert not output.exists() and stages(workdir) == before


@pytest.mark.slow
def test_a_compatible_model_and_another_sample(finished):
    """Beside what is there: only these are trained, drawn and evaluated."""
    config, workdir, _ = finished
    study_run.study(config, workdir)  # Other tests have changed a setting.
    before = stages(workdir)
    changed = config.copy_and_resolve_references()
    changed.models.bct = config.models.new.copy_and_resolve_references()
    changed.models.bct.compatibility.method = "bct"
    more = config.transformations.fct_pairs.copy_and_resolve_references()
    more.pairs.share = 0.5
    changed.transformations.fct_more_pairs = more
    records = {record["case"]: record for record in study_run.study(changed, workdir)}
    after = stages(workdir)
    tables = {workdir / "seed_0" / "rows" / name / "gallery.lance" for name in ("train", "gallery")}
    assert {path for path in before if after[path] != before[path]} == tables
    assert records["bct/old"]["method"] == records["bct/bct"]["method"] == "bct"
    assert records["new/old"]["method"] == "independent"
    for case in ("old/old", "new/T(old) fct_more_pairs", "new/new"):
        assert records[f"{case} (remaining 50 %)"]["num_gallery"] == 12
    assert (workdir / "seed_0" / "rows" / "pairs_0.5_random" / "pairs.lance").exists()


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("dataset.train", "folder:/nowhere:train", "/nowhere"),
        ("dataset.train", "tfds:no_such_data_set:train", "no_such_data_set"),
        ("models.old.classes.first", 99, "99"),
        ("transformations.fct.source", "older", "older"),
    ],
)
def test_bad_experiments(finished, run_door, tmp_path, capsys, key, value, message):
    _, workdir, _ = finished
    config = tiny.experiment_file(tmp_path / "e.py", workdir.parent / "images", epochs=1)
    status = run_door(
        study, f"--config={config}", f"--workdir={tmp_path / 'run'}", f"--config.{key}={value}"
    )
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert status == 2 and error.startswith("error: ") and message in error
