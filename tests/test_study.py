"""A whole model change: every stage runs, a finished one is skipped, a changed one is not."""

import pytest

from fct_tf import study
from fct_tf.files import read_json
from tests import tiny


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A study that has run once: its experiment, working directory and records."""
    directory = tmp_path_factory.mktemp("study")
    config = tiny.experiment(tiny.image_folder(directory / "images"), epochs=1)
    records = study.study(config, directory / "run", "python -m fct_tf.study")
    return config, directory / "run", records


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
        "new/new",
        "side_info/side_info",
    ]
    for record in records:
        assert record["num_gallery"] == 24 and record["seed"] == 0
        assert set(record["query"]) >= {"path", "version", "column", "space", "model"}
        assert 0 <= record["cmc"]["1"] <= record["cmc"]["5"] <= 1
        assert 0 <= record["map"] <= 1
    assert records[2]["method"] == "fct"
    run = read_json(workdir / "run.json")
    assert run["command"] == "python -m fct_tf.study"
    assert run["config"]["models"]["new"]["train_epochs"] == 1
    assert "tensorflow" in run["versions"]


def test_report(finished):
    _, workdir, _ = finished
    html = (workdir / "report" / "index.html").read_text()
    assert "new/T(old)" in html and "<img" in html and "http://" not in html


def test_finished_stages_are_skipped(finished):
    config, workdir, records = finished
    before = stages(workdir)
    assert study.study(config, workdir) == records
    assert stages(workdir) == before


def test_a_changed_transformation_repeats_only_what_depends_on_it(finished):
    config, workdir, _ = finished
    before = stages(workdir)
    config.transformations.fct.hidden = 24
    try:
        study.study(config, workdir)
    finally:
        config.transformations.fct.hidden = 16
    after = stages(workdir)
    changed = {str(path.relative_to(workdir)) for path in after if after[path] != before.get(path)}
    assert changed == {
        "seed_0/fct/metrics.jsonl",
        "seed_0/rows/gallery/gallery.lance",
        "seed_0/evaluation/new_T_old_fct/results.json",
    }


@pytest.mark.slow
def test_views_of_the_training_images(finished):
    config, workdir, _ = finished
    config.transformations.fct.views = 2
    config.transformations.fct.views_augment.name = "flip"
    try:
        study.study(config, workdir)
    finally:
        config.transformations.fct.views = 0
    facts = read_json(workdir / "seed_0" / "fct" / "artifact" / "model.json")["facts"]
    assert facts["rows"] == 80 and facts["steps"] == 5


def test_door_prints_the_table(finished, run_door, tmp_path, capsys):
    _, workdir, _ = finished
    images = workdir.parent / "images"
    config = tiny.experiment_file(tmp_path / "e.py", images, epochs=1)
    assert run_door(study, f"--config={config}", f"--workdir={workdir}") == 0
    shown = capsys.readouterr().out
    assert "new/T(old) fct" in shown and "index.html" in shown


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
