"""The kernel correction against scikit-learn, in NumPy, in Keras and as a SavedModel."""

import json
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.kernel_ridge import KernelRidge

from fct_tf.gallery import table
from fct_tf.models import artifact, export, fold, kernel, saved_model, transformation
from fct_tf.training import closed_form
from tests import tiny

D_SOURCE, D_SIDE, D_TARGET = 6, 3, 4


def some_blocks(count, offset=0.0, seed=0):
    rng = np.random.default_rng(seed)
    sizes = {"source_embedding": D_SOURCE, "side_info": D_SIDE, "embedding": D_TARGET}
    return {
        role: (scale * rng.normal(size=(count, size)) + offset).astype(np.float32)
        for scale, (role, size) in zip((3.0, 0.1, 1.0), sizes.items(), strict=True)
    }


def some_residual(blocks, noise=0.1, seed=1):
    """A smooth function of the blocks, with noise."""
    rng = np.random.default_rng(seed)
    rows = np.concatenate([values / values.std() for values in blocks.values()], axis=1)
    smooth = np.sin(rows @ rng.normal(size=(rows.shape[1], D_TARGET)) / 3)
    return smooth + noise * rng.normal(size=smooth.shape)


def scaled(blocks):
    """What the kernel compares, worked out another way."""
    parts = []
    for values in blocks.values():
        centred = values - values.mean(axis=0, dtype=np.float64)
        parts.append(centred / np.sqrt(np.square(centred).sum() / len(values)))
    return np.concatenate(parts, axis=1)


def gram(a, b, width):
    return np.exp(-np.square(a[:, None] - b[None]).sum(axis=2) / width)


def test_with_all_pairs_as_centres_it_is_kernel_ridge_regression():
    blocks, new = some_blocks(47), some_blocks(13, seed=5)
    residual = some_residual(blocks)
    fitted = kernel.fit(blocks, residual)
    assert fitted.centres.shape == (47, 13) and fitted.chosen["centres"] == 47
    # The blocks count alike: each has mean squared distance 2.
    assert fitted.width == pytest.approx(6 * fitted.chosen["width"])
    model = KernelRidge(alpha=fitted.chosen["ridge"], kernel="rbf", gamma=1 / fitted.width)
    model.fit(scaled(blocks), residual)
    joined = {role: np.concatenate([blocks[role], new[role]]) for role in blocks}
    points = np.concatenate(
        [
            (joined[role] - blocks[role].mean(axis=0, dtype=np.float64))
            / np.sqrt(blocks[role].var(axis=0, dtype=np.float64).sum())
            for role in blocks
        ],
        axis=1,
    )
    np.testing.assert_allclose(fitted(joined), model.predict(points), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("block_rows", [7, 4096])
def test_with_fewer_centres_it_is_least_squares_over_their_span(monkeypatch, block_rows):
    monkeypatch.setattr(kernel, "BLOCK_ROWS", block_rows)
    blocks = some_blocks(53)
    residual = some_residual(blocks)
    fitted = kernel.fit(blocks, residual, max_centres=11)
    points = scaled(blocks)
    centres = points[np.random.default_rng(0).permutation(53)[:11]]
    np.testing.assert_allclose(fitted.centres, centres, atol=1e-12)
    # |K c - r|^2 + lam c' K_mm c as one least-squares problem: K_mm = R' R.
    values, vectors = np.linalg.eigh(gram(centres, centres, fitted.width))
    root = np.sqrt(fitted.chosen["ridge"] * values)[:, None] * vectors.T
    stacked = np.concatenate([gram(points, centres, fitted.width), root])
    wanted = np.concatenate([residual, np.zeros((11, D_TARGET))])
    expected = np.linalg.lstsq(stacked, wanted, rcond=None)[0]
    np.testing.assert_allclose(fitted.coefficients, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("choice_pairs", [1024, 23])
def test_width_and_ridge_are_the_best_of_an_explicit_cross_validation(monkeypatch, choice_pairs):
    monkeypatch.setattr(kernel, "CHOICE_PAIRS", choice_pairs)
    blocks = some_blocks(31)
    residual = some_residual(blocks)
    chosen = kernel.fit(blocks, residual, max_centres=9, seed=3).chosen
    order = np.random.default_rng(3).permutation(31)[:choice_pairs]
    points, wanted = scaled(blocks)[order], residual[order]
    errors = {}
    for width in kernel.WIDTHS:
        for lam in kernel.LAMBDAS:
            found = np.empty_like(wanted)
            for part in range(5):
                out = np.arange(len(order)) % 5 == part
                model = KernelRidge(alpha=lam, kernel="rbf", gamma=1 / (6 * width))
                found[out] = model.fit(points[~out], wanted[~out]).predict(points[out])
            errors[width, lam] = np.mean((found - wanted) ** 2)
    best = min(errors, key=errors.get)
    assert (chosen["width"], chosen["ridge"]) == best
    assert chosen["mse_after"] == pytest.approx(errors[best], rel=1e-6)
    assert chosen["mse_before"] == pytest.approx(np.mean(wanted**2))
    assert chosen["mse_after"] < chosen["mse_before"]
    json.dumps(chosen)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_pairs(count):
    blocks = some_blocks(count)
    residual = some_residual(blocks)
    fitted = kernel.fit(blocks, residual)
    # What a pair says of itself; far away from all pairs nothing is corrected.
    assert np.all(np.abs(fitted(blocks) - residual) < np.abs(residual).max())
    far = {role: values + 1e6 for role, values in blocks.items()}
    np.testing.assert_array_equal(fitted(far), 0)
    if count == 1:  # Nothing is known of other rows.
        assert fitted.chosen["mse_after"] == pytest.approx(fitted.chosen["mse_before"])


def test_repeated_pairs():
    blocks = {role: np.repeat(values, 4, axis=0) for role, values in some_blocks(5).items()}
    residual = some_residual(blocks)
    for max_centres in (4096, 7):
        fitted = kernel.fit(blocks, residual, max_centres=max_centres)
        assert np.isfinite(fitted(blocks)).all() and np.abs(fitted.coefficients).max() < 1e3
    same = {role: np.repeat(values[:1], 20, axis=0) for role, values in blocks.items()}
    fitted = kernel.fit(same, np.full((20, D_TARGET), 0.5))
    np.testing.assert_allclose(fitted(same), 0.5, rtol=0.01)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e3])
def test_a_constant_column_changes_nothing(value):
    blocks = some_blocks(29)
    residual = some_residual(blocks)
    expected = kernel.fit(blocks, residual)
    constant = {**blocks, "more": np.full((29, 3), value, np.float32)}
    found = kernel.fit(constant, residual)
    assert found.chosen == pytest.approx(expected.chosen)
    np.testing.assert_allclose(found(constant), expected(blocks), rtol=1e-6, atol=1e-9)


def some_model(side=True, seed=2, **settings):
    model = transformation.build(
        D_SOURCE, D_TARGET, D_SIDE if side else None, hidden=11, seed=seed, **settings
    )
    rng = np.random.default_rng(4)
    for weight in model.weights:  # A BatchNorm that does something.
        if weight.path.endswith("variance"):
            weight.assign(rng.uniform(0.5, 2.0, weight.shape))
        elif weight.path.endswith(("mean", "beta")):
            weight.assign(rng.normal(0, 0.3, weight.shape))
        elif weight.path.endswith("gamma"):
            weight.assign(rng.normal(2, 0.3, weight.shape))
    return model


def some_inputs(count, offset, side=True):
    blocks = some_blocks(count, offset)
    return {role: blocks[role] for role in ("source_embedding", "side_info")[: 1 + side]}


def some_correction(model, inputs):
    """Fitted to the model's own output; and the corrected embedding, in NumPy."""
    output = model(inputs, training=False)["embedding"].numpy()
    blocks = {**inputs, "embedding": output}
    fitted = kernel.fit(blocks, some_residual(blocks))
    expected = output + fitted(blocks)
    assert np.abs(expected - output).max() > 0.1
    return fitted, expected


@pytest.mark.parametrize("side", [True, False])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_the_keras_model_is_the_numpy_correction(side, normalize, offset):
    model = some_model(side, normalize=normalize)
    inputs = some_inputs(61, offset, side)
    fitted, expected = some_correction(model, inputs)
    if normalize:
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    corrected = transformation.corrected(model, fitted, normalize=normalize)
    assert set(corrected.input) == set(inputs)
    found = corrected(inputs, training=False)["embedding"]
    assert found.dtype == tf.float32
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_further_outputs_are_kept():
    model = some_model()
    head = keras.layers.Dense(1, name="log_variance")(model.output["embedding"])
    model = keras.Model(model.input, {**model.output, "log_variance": head})
    inputs = some_inputs(20, 0.0)
    fitted, expected = some_correction(model, inputs)
    found = transformation.corrected(model, fitted)(inputs)
    np.testing.assert_allclose(found["embedding"], expected, atol=1e-4)
    expected = model(inputs)["log_variance"]
    np.testing.assert_allclose(found["log_variance"], expected, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module", params=[pytest.param("l2", marks=pytest.mark.slow), "cosine"])
def saved(request, tmp_path_factory):
    """The artifact of a corrected model that was itself read from an artifact, and its output."""
    directory, unit_length = tmp_path_factory.mktemp("corrected"), request.param == "cosine"
    spaces = {"source_space": "a", "side_info_space": "b", "target_space": "c"}
    info = {"name": "corrected", "distance": request.param, **spaces}
    base = some_model(normalize=unit_length, seed=7)  # No row is short.
    artifact.save(directory / "base", base, "transformation", info)
    base = artifact.load(directory / "base").model
    inputs = some_inputs(61, 10.0)
    fitted, expected = some_correction(base, inputs)
    model = transformation.corrected(base, fitted, normalize=unit_length)
    artifact.save(directory / "artifact", model, "transformation", info)
    if unit_length:
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    return directory / "artifact", inputs, expected


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-4), ("bfloat16", 0.06)])
def test_the_saved_model_is_the_numpy_correction(saved, tmp_path, dtype, tolerance):
    path, inputs, expected = saved
    exported = export.export_transformation(path, tmp_path / "saved_model", dtype=dtype)
    model = saved_model.load_transformation(exported)
    assert model.dims == {"source_embedding": 6, "side_info": 3, "embedding": 4}
    assert model.info["batch_norm_folded"]
    found = model(inputs["source_embedding"], inputs["side_info"])["embedding"]
    missed = np.linalg.norm(found - expected, axis=1)
    assert np.all(missed < tolerance * np.maximum(1, np.linalg.norm(expected, axis=1)))
    folded = fold.fold_batch_norm(artifact.load(path).model, dtype)
    kinds = {type(layer).__name__ for layer in folded.layers}
    assert "Identity" in kinds and not any("BatchNorm" in kind for kind in kinds)


def test_the_artifact_needs_no_package(tmp_path):
    """The layers of the corrected network itself are Keras' own as well."""
    model = some_model()
    fitted, _ = some_correction(model, some_inputs(20, 0.0))
    info = {"name": "corrected", "distance": "l2", "source_space": "a", "target_space": "c"}
    artifact.save(
        tmp_path / "artifact",
        transformation.corrected(model, fitted),
        "transformation",
        {**info, "side_info_space": "b"},
    )
    with zipfile.ZipFile(tmp_path / "artifact" / "model.keras") as file:
        assert "fct_tf" not in file.read("config.json").decode()


@pytest.mark.parametrize("gain", [True, False])
def test_a_correction_is_made_only_where_it_helps_on_pairs_held_out(tmp_path, gain):
    rng = np.random.default_rng(0)
    model, inputs = some_model(), some_inputs(61, 0.0)
    target = model(inputs)["embedding"].numpy() + rng.normal(size=(61, D_TARGET))
    if gain:
        target = target * 0.1 + 3
    dims = {"source_embedding": D_SOURCE, "side_info": D_SIDE, "target": D_TARGET}
    columns = {role: table.Column(role, dim, role * 4) for role, dim in dims.items()}
    rows = table.Rows(
        np.array([str(row) for row in range(61)], object),
        None,
        {**inputs, "target": target.astype(np.float32)},
    )
    pairs = table.create(tmp_path / "pairs.lance", [rows], list(columns.values()))
    section = tiny.experiment(tmp_path).transformations.fct
    made, chosen = closed_form.correct(model, pairs, columns, section, seed=0)
    assert (made is not model) == gain == (chosen["mse_after"] < chosen["mse_before"])
    assert chosen["pairs"] == 61


@pytest.mark.parametrize("count", [1, 2, 4, 5])
def test_fewer_pairs_than_folds_correct_nothing(count):
    """With one, nothing is left to fit: before and after are one number, and rounding decides."""
    generator = np.random.default_rng(count)
    for _ in range(20):
        blocks = {"source_embedding": generator.normal(size=(count, 3))}
        fitted = kernel.fit(blocks, np.ones((count, 2)) + 1e-3 * generator.normal(size=(count, 2)))
        assert fitted.helps == (count >= kernel.FOLDS)
