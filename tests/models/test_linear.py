"""Maps in closed form against scikit-learn and SciPy."""

import numpy as np
import pytest
from scipy.linalg import orthogonal_procrustes
from sklearn.linear_model import Ridge

from fct_tf.models import linear


def some_rows(count=41, d_in=7, d_out=5, seed=0):
    """Rows with means far from zero, related by a linear map and noise."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, d_in)) @ rng.normal(size=(d_in, d_in)) + rng.normal(size=d_in) * 9
    y = x @ rng.normal(size=(d_in, d_out)) + 0.3 * rng.normal(size=(count, d_out)) + 4
    return x.astype(np.float32), y.astype(np.float32)


@pytest.mark.parametrize("lam", [1e-4, 0.1, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_ridge_equals_scikit_learn(lam, weighted):
    x, y = some_rows()
    weights = np.random.default_rng(1).uniform(0, 3, len(x)) if weighted else np.ones(len(x))
    weights[:4] = 0 if weighted else 1  # as if these rows were not there
    shares = weights / weights.sum()
    # Ours is a share of the mean variance and goes with shares that sum to one.
    variance = (shares[:, None] * (x - shares @ x) ** 2).sum() / x.shape[1]
    expected = Ridge(alpha=lam * variance).fit(x.astype(np.float64), y, sample_weight=shares)
    matrix, offset = linear.ridge_affine(x, y, lam, weights if weighted else None)
    np.testing.assert_allclose(matrix, expected.coef_.T, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(offset, expected.intercept_, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(linear.apply((matrix, offset), x), expected.predict(x), rtol=1e-6)


def test_ridge_means_the_same_for_every_scale_and_number_of_rows():
    x, y = some_rows()
    matrix, offset = linear.ridge_affine(x, y, 0.1)
    scaled, same = linear.ridge_affine(np.tile(1024 * x, (3, 1)), np.tile(y, (3, 1)), 0.1)
    np.testing.assert_allclose(1024 * scaled, matrix, rtol=1e-5)
    np.testing.assert_allclose(same, offset, rtol=1e-5)


def test_more_dimensions_than_rows_and_rows_that_do_not_vary():
    x, y = some_rows(count=3)
    assert np.isfinite(linear.ridge_affine(x, y, 1e-4)[0]).all()
    for count in (1, 4):
        x, y = np.full((count, 7), 0.1, np.float32), np.full((count, 5), 0.3, np.float32)
        for fitted in (linear.ridge_affine(x, y, 1e-4), linear.procrustes(x, y)):
            np.testing.assert_allclose(linear.apply(fitted, x), y, rtol=1e-6)


@pytest.mark.parametrize("d_in, d_out", [(6, 6), (4, 7), (7, 4)])
@pytest.mark.parametrize("weighted", [False, True])
def test_procrustes_equals_scipy(d_in, d_out, weighted):
    x, y = some_rows(d_in=d_in, d_out=d_out)
    weights = np.random.default_rng(2).uniform(0, 3, len(x)) if weighted else np.ones(len(x))
    means = [np.average(side, axis=0, weights=weights) for side in (x, y)]
    # A weight is as good as so many rows: the root of it scales the row.
    root, size = np.sqrt(weights)[:, None], max(d_in, d_out)
    padded = [
        np.pad(root * (side - mean), ((0, 0), (0, size - side.shape[1])))
        for side, mean in zip((x, y), means, strict=True)
    ]
    rotation, _ = orthogonal_procrustes(*padded)
    matrix, offset = linear.procrustes(x, y, weights if weighted else None)
    assert matrix.shape == (d_in, d_out)
    np.testing.assert_allclose(matrix, rotation[:d_in, :d_out], atol=1e-7)
    np.testing.assert_allclose(offset, means[1] - means[0] @ matrix, atol=1e-5)
    smaller = matrix @ matrix.T if d_in <= d_out else matrix.T @ matrix
    np.testing.assert_allclose(smaller, np.eye(min(d_in, d_out)), atol=1e-9)


def test_procrustes_finds_a_rotation_with_a_shift():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(20, 5))
    rotation = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    matrix, offset = linear.procrustes(x, x @ rotation + 3)
    np.testing.assert_allclose(matrix, rotation, atol=1e-9)
    np.testing.assert_allclose(offset, np.full(5, 3), atol=1e-9)


def test_lambda_with_the_least_error_on_other_rows():
    rng = np.random.default_rng(4)
    held_out = np.arange(60) % 3 == 0
    x = rng.normal(size=(60, 30)).astype(np.float32)
    y = (x[:, :2] + rng.normal(size=(60, 2))).astype(np.float32)  # more noise than can be fitted
    lambdas = (1e-3, 0.3, 100.0)
    lam, errors = linear.choose_lambda(x, y, held_out, lambdas)
    for value in lambdas:
        variance = x[~held_out].var(axis=0).mean()
        model = Ridge(alpha=value * variance * 40).fit(x[~held_out], y[~held_out])
        expected = np.mean((model.predict(x[held_out]) - y[held_out]) ** 2)
        assert errors[value] == pytest.approx(expected, rel=1e-4)
    assert lam == 0.3 == min(errors, key=errors.get)
    # Without noise the least ridge is best.
    assert linear.choose_lambda(x, x[:, :3], held_out)[0] == min(linear.LAMBDAS)
