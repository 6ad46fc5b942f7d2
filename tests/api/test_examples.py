"""The examples do what their heads say, on data of a stranger's kind."""

import copy
import importlib.util
import re
import sys

import keras
import nbclient
import nbformat
import numpy as np
import pytest
import tensorflow as tf

import fct_tf
from tests import tiny
from tests.conftest import ROOT

EXAMPLES = ROOT / "examples"
NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?")


@pytest.fixture
def run(monkeypatch, capsys):
    """`run(name, *arguments)` -> what it printed."""

    def call(name, *arguments):
        spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        module.main()
        return capsys.readouterr().out

    return call


def served(path, rows):
    """What the SavedModel at `path` makes of rows of the old model."""
    loaded = tf.saved_model.load(str(path)).signatures["serving_default"]
    return loaded(source_embedding=tf.constant(rows))["embedding"].numpy()


@pytest.fixture(scope="module")
def vectors(tmp_path_factory):
    """A directory of .npy files: `new` is a noisy linear function of `old`."""
    at, rng = tmp_path_factory.mktemp("vectors"), np.random.default_rng(0)
    labels = rng.integers(30, size=1200)
    new = rng.normal(size=(30, 16))[labels] + 0.6 * rng.normal(size=(1200, 16))
    old = new @ rng.normal(size=(16, 12)) + 0.1 * rng.normal(size=(1200, 12))
    rows = rng.permutation(1200)[:600]
    for name, values in {"old": old, "all_new": new}.items():
        np.save(at / f"{name}.npy", values.astype(np.float32))
    for name, values in {"new": new[rows], "first": new[:600]}.items():
        np.save(at / f"{name}.npy", values.astype(np.float32))
    np.save(at / "rows.npy", rows)
    np.save(at / "labels.npy", labels)
    return at


@pytest.mark.parametrize(
    "method, labelled",
    [("affine", True), ("affine", False), pytest.param("fct", True, marks=pytest.mark.slow)],
)
def test_your_vectors(run, vectors, tmp_path, method, labelled):
    out = tmp_path / "out"
    chosen = ["new.npy", "--rows", vectors / "rows.npy"] if labelled else ["first.npy"]
    chosen[0] = vectors / chosen[0]
    more = ["--labels", vectors / "labels.npy"] if labelled else []
    printed = run(
        *("your_vectors", vectors / "old.npy", *chosen, *more, "--method", method),
        *("--output", out),
    )
    assert ("compatible: " in printed) == labelled and f"serve: {out / 'model' / '1'}" in printed
    upgraded = np.load(out / "upgraded.npy")
    new, old = np.load(vectors / "all_new.npy"), np.load(vectors / "old.npy")
    assert upgraded.shape == (1200, 16) and upgraded.dtype == np.float32
    # 12 numbers of 16 are known: three quarters of the variance, in the order of the file.
    left = np.square(upgraded - new).sum() / np.square(new - new.mean(0)).sum()
    assert left < 0.45
    np.testing.assert_allclose(served(out / "model" / "1", old), upgraded, atol=1e-4)
    gallery = fct_tf.Gallery.open(out / "gallery.lance")
    assert set(gallery.columns) == {"embedding_old", "embedding_upgraded"}


@pytest.mark.parametrize(
    "flag, values, told",
    [
        ("--labels", np.zeros(1199), "--labels: one for each of the 1200 rows of old"),
        ("--labels", np.array(None), "Object arrays cannot be loaded"),
        ("--rows", np.arange(1200), "--rows: one of 0..1199 for each of the 600 rows of new"),
        ("--rows", np.arange(601, 1201), "--rows: one of 0..1199"),
        ("--rows", None, "No such file"),
    ],
)
def test_files_that_do_not_fit_are_one_line(run, vectors, tmp_path, capsys, flag, values, told):
    path = tmp_path / "given.npy"
    if values is not None:
        np.save(path, values)
    with pytest.raises(SystemExit) as ended:
        files = (vectors / "old.npy", vectors / "new.npy")
        run("your_vectors", *files, flag, path, "--output", tmp_path / "out")
    assert ended.value.code == 2 and told in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def check_images(out, printed):
    assert "new/T(old)" in printed and f"serve: {out / 'model' / '1'}" in printed
    gallery = fct_tf.Gallery.open(out / "gallery.lance")
    assert set(gallery.columns) == {"embedding_old", "embedding_upgraded"} and len(gallery) == 84
    rows = gallery.read(["embedding_old", "embedding_upgraded"]).vectors
    made = served(out / "model" / "1", rows["embedding_old"])
    np.testing.assert_allclose(made, rows["embedding_upgraded"], atol=1e-4)
    assert len(fct_tf.Gallery.open(out / "sample.lance")) == 17
    assert (out / "query" / "1" / "saved_model.pb").exists()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return tiny.image_folder(tmp_path_factory.mktemp("folder") / "images", per_class=40)


@pytest.mark.slow
def test_your_images_with_models_of_your_own(run, images, tmp_path):
    for name, dim in {"old": 6, "new": 8}.items():
        keras.utils.set_random_seed(dim)
        inputs = keras.Input((16, 16, 3))
        outputs = keras.layers.Dense(dim)(keras.layers.GlobalAveragePooling2D()(inputs))
        keras.Model(inputs, outputs).save(tmp_path / f"{name}.keras")
    out = tmp_path / "out"
    models = [f"--{name}={tmp_path / name}.keras" for name in ("old", "new")]
    check_images(out, run("your_images", images, "--output", out, "--method=affine", *models))


@pytest.mark.slow
def test_your_images_with_small_models(run, images, tmp_path):
    out = tmp_path / "out"
    given = ("--image-size", 16, "--epochs", 1)
    check_images(out, run("your_images", images, "--output", out, *given))


NOTEBOOK = nbformat.read(EXAMPLES / "your_vectors.ipynb", as_version=4)


def shown(notebook):
    """Of each cell the kinds of what it shows, and all that is printed."""
    outputs = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    kinds = [[sorted(one.data) for one in cell if "data" in one] for cell in outputs]
    streams = [one for cell in outputs for one in cell if one.output_type == "stream"]
    return kinds, " ".join(" ".join(o.text for o in streams if o.name == "stdout").split())


def test_the_notebook_is_kept_with_its_outputs():
    kinds, printed = shown(NOTEBOOK)
    assert sum("image/png" in kind for cell in kinds for kind in cell) == 3
    assert "compatible: " in printed
    cells = [cell for cell in NOTEBOOK.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    text = (EXAMPLES / "your_vectors.ipynb").read_text()
    assert len(text) < 200_000
    assert not re.findall(r"/(?:home|root|tmp|work|Users)/", text)


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    again = copy.deepcopy(NOTEBOOK)
    settings = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(again, timeout=600, kernel_name="python3", resources=settings).execute()
    (kinds, printed), (before, told) = shown(again), shown(NOTEBOOK)
    assert kinds == before
    assert NUMBER.sub("#", printed) == NUMBER.sub("#", told)
    assert not list(tmp_path.iterdir())  # It leaves nothing.


def test_one_model_of_your_own_is_not_enough(run, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        run("your_images", tmp_path, "--output", tmp_path / "out", "--old", "old.keras")
    assert ended.value.code == 2 and "--old and --new go together" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
