"""The benchmark of the upgrade runs at tiny sizes and writes what it measured."""

import json
import sys

import pytest

from fct_tf import config as schema
from fct_tf.models import artifact, backbone, preprocess


@pytest.fixture
def embedding_model(tmp_path):
    network = backbone.build(schema.backbone(width=0.0625, embedding_dim=8), 16)
    info = {
        "name": "old",
        "distance": "l2",
        "preprocessing": preprocess.preprocessing("symmetric", 16, "bilinear_antialias"),
    }
    return artifact.save(tmp_path / "artifact", network, "backbone", info)


@pytest.fixture
def run(script, monkeypatch):
    """Runs the benchmark at a tiny size; what it wrote."""

    def at(output, *arguments):
        tiny_sizes = "--rows=61 --dim=8 --hidden=5 --batch_size=23 --rounds=1 --rows_per_file=31"
        monkeypatch.setattr(sys, "argv", ["upgrade_speed.py"])
        script("upgrade_speed").main([*tiny_sizes.split(), f"--output={output}", *arguments])
        return json.loads(output.read_text())

    return at


def test_speed_and_images(run, images, tmp_path, embedding_model):
    arguments = [f"--model={embedding_model}", f"--images=folder:{images}:train"]
    output = tmp_path / "speed.json"
    record = run(output, *arguments, "--image_batch_size=8", "--memory_rows")
    assert str(tmp_path) not in output.read_text()
    speed, embedded = record["speed"], record["images"]
    assert speed["of_bare"] > 0 and speed["of_bare_processor_time"] > 0
    assert speed["passed"] == (speed["of_bare"] >= 0.8)
    # Both sources and the id, and what Lance adds; of the new column at least its values.
    assert speed["file_bytes_read_per_row"] > 2 * 4 * 8
    assert speed["file_bytes_written_per_row"] > 4 * 8
    files = list((images / "train").rglob("*.png"))
    assert embedded["images_measured"] == 32  # 40 images, of which one batch warms up.
    assert embedded["mean_encoded_bytes"] == pytest.approx(
        sum(file.stat().st_size for file in files) / len(files), abs=0.1
    )
    assert embedded["upgrade"]["bytes_read"] == 1_000_000 * 2 * 4 * 8


@pytest.mark.slow
def test_memory(run, tmp_path, capsys):
    sizes = ["--memory_rows", "17", "65", "--memory_dim=3", "--memory_hidden=5"]
    record = run(tmp_path / "speed.json", *sizes)
    small, large = record["memory"]["sizes"]
    assert (small["rows"], small["fragments"]) == (17, 1)
    assert (large["rows"], large["fragments"]) == (65, 3)
    assert small["peak_bytes"] > 100e6  # TensorFlow alone is more.
    assert record["memory"]["growth"] < 1.1 and record["memory"]["passed"]
    assert record["images"] is None
    assert "17 rows: peak" in capsys.readouterr().out


@pytest.mark.parametrize(
    "text, shared",
    [
        ("--output=/tmp/x/y.json", "--output=y.json"),
        ("--images=folder:/data/photos:val", "--images=folder:photos:val"),
        ("results/x.json", "results/x.json"),
        ("--images=tfds:omniglot:test", "--images=tfds:omniglot:test"),
        ("--rows=/data/a.lance,/data/b.lance", "--rows=a.lance,b.lance"),
    ],
)
def test_commands_do_not_tell_where_a_machine_keeps_its_files(script, text, shared):
    assert script("machine").without_directories(text) == shared
