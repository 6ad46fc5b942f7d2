"""The page of a report."""

import json
import subprocess
import sys

import matplotlib.image
import numpy as np
import pytest

from fct_tf.common.errors import InputError
from fct_tf.report import (
    page,
    training_page,
)
from fct_tf.report.pictures import Example
from tests.report.records import Reader, record, study


def image(value=0, shape=(7, 5, 3)):
    return np.full(shape, value, np.uint8)


def runs(tmp_path, seeds=(0,)):
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": 20 * i, "loss": 3 / i, "learning_rate": 0.1} for i in range(1, 91)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    facts = {"backbone": "resnet18", "parameters": 7380000, "duration_s": 200.4, "batch size": 128}
    made = []
    for seed in seeds:
        made.append(page.TrainingRun("old", seed, path, facts))
        made.append(page.TrainingRun("<new>", seed, tmp_path / "missing", {"note": "a & b"}))
    return made


def test_page(tmp_path):
    label = 'A<u>&"c"'
    example = Example(
        *(image(10), label, [(image(20), "wrong<u>"), (image(30), label)], [(image(30), label)]),
        case="new/T(old) fct",
    )
    index = page.write(
        tmp_path / "report",
        title="<script>alert(1)</script> & co",
        records=study(),
        runs=runs(tmp_path),
        examples=[example],
        config={"name": "x</pre><u>", "nested": {"epochs": 12}},
        command="python -m fct_tf.study --config='<a>'",
        versions={"numpy": "2.<0>"},
    )
    assert index == tmp_path / "report" / "index.html"
    read = Reader(index)
    tags = [tag for tag, _ in read.tags]
    assert "script" not in tags and "u" not in tags and tags.count("h1") == 1
    for told in (
        "<script>alert(1)</script> & co",
        "Compatible",
        "10.00 points more than old/old",
        "101 queries",
        "L2 distance",
        "7,380,000",
        "3 min 20 s",
        "<new>",
        "No training metrics were found",
        label,
        "wrong<u>",
        "1 of 2 right",
        "1 of 1 right",
        '"nested": {',
        "--config='<a>'",
        "2.<0>",
        "before and after the upgrade (new/T(old) fct)",
    ):
        assert told in read.text.replace("\u00a0", " "), told
    assert read.files and all((index.parent / name).is_file() for name in read.files)
    assert not any(":" in name or name.startswith("/") for name in read.files), "no network"
    alternatives = [attributes["alt"] for tag, attributes in read.tags if tag == "img"]
    assert f"right: {label}" in alternatives and "wrong: wrong<u>" in alternatives
    # One file for each image, also where it is shown twice.
    assert len(list((index.parent / "images").iterdir())) == 3
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_images_are_written_as_they_are(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (7, 5, 3), np.uint8)
    example = Example(pixels, "a", [(pixels[:, :, 0], "a"), (pixels[:, :, :1], "b")], [])
    index = page.write(tmp_path / "report", title="t", records=study(), examples=[example])
    written = sorted(
        (matplotlib.image.imread(path)[..., :3] * 255).round().astype(np.uint8).tolist()
        for path in (index.parent / "images").iterdir()
    )
    gray = np.repeat(pixels[:, :, :1], 3, axis=2)
    assert written == sorted([pixels.tolist(), gray.tolist()])


def test_page_of_several_seeds(tmp_path):
    records = study(0.6, seed=0) + study(0.64, seed=1)
    index = page.write(
        tmp_path / "report", title="t", records=records, runs=runs(tmp_path, seeds=(0, 1))
    )
    told = Reader(index).text
    assert "2 seeds" in told and "every seed" in told and "± 2.83" in told
    assert "± 2.83 points over 2 seeds, clear in 2 of them" in told


@pytest.mark.parametrize(
    "records",
    [
        [],
        [record("old/old")],
        [{"case": "a", "cmc": {}, "map": None}],
        study(0.4, map=None, confidence=None),
        [{**record("old/old"), "cmc": {}}],
    ],
)
def test_page_of_little(tmp_path, records):
    index = page.write(tmp_path / "report", title="t", records=records)
    read = Reader(index)
    assert all((index.parent / name).is_file() for name in read.files)


def test_a_report_is_replaced_and_nothing_else_is(tmp_path):
    for title in ("first", "second"):
        index = page.write(tmp_path / "report", title=title, records=study())
    assert "second" in Reader(index).text
    other = tmp_path / "photos"
    other.mkdir()
    (other / "index.html").write_text("<html>mine</html>")
    for path in (other, other / "index.html"):
        with pytest.raises(InputError, match="is no report"):
            page.write(path, title="t", records=study())
    assert (other / "index.html").read_text() == "<html>mine</html>"


def test_a_failed_report_leaves_the_old_one(tmp_path):
    index = page.write(tmp_path / "report", title="first", records=study())
    bad = Example(np.zeros((3, 3, 3), np.float32), "<x>", [], [])
    with pytest.raises(
        InputError, match=r"example image of '<x>': .* received float32 \[3, 3, 3\]"
    ):
        page.write(tmp_path / "report", title="second", records=study(), examples=[bad])
    assert "first" in Reader(index).text
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


@pytest.mark.parametrize(
    "key, value, expected",
    [
        ("duration_s", 7.25, "7.2 s"),
        ("duration_s", 59.7, "1 min 0 s"),
        ("duration_s", 7265, "2 h 1 min"),
        ("images_per_s", 2134.7, "2,134.7"),
        ("size_bytes", 29_500_000, "29.5 MB"),
        ("loss", 0.00012345, "0.0001234"),
        ("classes", 964, "964"),
        ("frozen", True, "yes"),
        ("missing", None, "–"),
        ("loss", float("nan"), "–"),
        ("name", "resnet18", "resnet18"),
    ],
)
def test_facts(key, value, expected):
    assert training_page.fact(key, value) == expected


def test_imports_no_tensorflow():
    code = "import sys, fct_tf.report.page; assert 'tensorflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
