"""Calibration of predicted variances against SciPy and by hand, and its figure."""

import numpy as np
import pytest
from scipy import stats

from fct_tf.backfill import calibration
from fct_tf.common.errors import InputError
from fct_tf.gallery import table
from fct_tf.report.calibration import plot, sentences

N = 211  # a prime: bins do not fit


@pytest.fixture
def some():
    """Log-variances, some of them equal, and errors that they tell something about."""
    rng = np.random.default_rng(0)
    s = np.round(rng.normal(-3, 1, N), 1)
    return s.astype(np.float32), (np.exp(s + 0.5) * rng.chisquare(8, N) / 8).astype(np.float32)


def test_correlations_equal_scipy(some):
    found = calibration.measure(*some)
    assert found["num_rows"] == N
    assert found["spearman"] == pytest.approx(stats.spearmanr(*some).statistic, abs=1e-9)
    log_error = np.log(some[1].astype(np.float64))
    assert found["pearson_log"] == pytest.approx(stats.pearsonr(some[0], log_error).statistic)
    assert found["median_log_ratio"] == pytest.approx(np.median(some[0] - log_error), abs=1e-6)
    ratio = np.exp(some[0].astype(np.float64)).mean() / some[1].mean(dtype=np.float64)
    assert found["mean_ratio"] == pytest.approx(ratio)


def test_bins_by_hand():
    """Two rows a bin: predicted 1, 4 and observed 2, 2; a factor of 2 either way."""
    s = np.log([4.0, 1.0, 1.0, 4.0])
    found = calibration.measure(s, np.array([1.0, 4.0, 0.0, 3.0]), bins=2)
    assert [b["count"] for b in found["bins"]] == [2, 2]
    assert [b["predicted"] for b in found["bins"]] == pytest.approx([1, 4])
    assert [b["observed"] for b in found["bins"]] == pytest.approx([2, 2])
    assert found["expected_calibration_error_log"] == pytest.approx(np.log(2))
    # The gaps are -log 2 and log 2: no factor mends both.
    assert found["expected_calibration_error_log_scaled"] == pytest.approx(np.log(2))
    assert found["mean_ratio"] == pytest.approx(2.5 / 2)


@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_a_right_prediction_and_one_off_by_a_factor(factor):
    s = np.linspace(-5, 2, N)
    found = calibration.measure(s + np.log(factor), np.exp(s), bins=7)
    assert sum(b["count"] for b in found["bins"]) == N
    assert found["spearman"] == pytest.approx(1) and found["pearson_log"] == pytest.approx(1)
    assert found["expected_calibration_error_log"] == pytest.approx(np.log(factor), abs=1e-9)
    assert found["expected_calibration_error_log_scaled"] == pytest.approx(0, abs=1e-9)
    assert found["mean_ratio"] == pytest.approx(factor)


def test_degenerate_values():
    found = calibration.measure(np.full(5, -2.0), np.arange(5.0))
    assert found["spearman"] is None and found["pearson_log"] is None
    one = calibration.measure(np.array([800.0]), np.array([0.0]))  # exp() would be infinite.
    assert np.isfinite(one["mean_ratio"]) and one["bins"][0]["count"] == 1
    for bad in (np.array([np.nan]), np.array([np.inf])):
        with pytest.raises(InputError, match="not finite"):
            calibration.measure(bad, np.ones(1))
    with pytest.raises(InputError, match="no rows"):
        calibration.measure(np.zeros(0), np.zeros(0))


def rows_of(some, backfilled=(), missing=()):
    rng = np.random.default_rng(1)
    new = rng.normal(size=(N, 4)).astype(np.float32)
    off = np.sqrt(some[1])[:, None] * np.array([1, -1, 1, -1], np.float32)
    ids = np.array([f"row{i}" for i in range(N)], object)
    origin = np.where(np.isin(np.arange(N), list(backfilled)), "backfilled", "transformed")
    known = np.isin(np.arange(N), [*backfilled, *missing])
    fields = {
        "x_origin": origin.astype(object),
        "x_log_variance": np.where(known, np.nan, some[0]),
    }
    return table.Rows(ids, None, {"new": new, "x": new + off}, fields)


def test_of_transformed_rows_alone(some):
    found = calibration.of_rows(rows_of(some, range(50, 90)), "x", "new", bins=5)
    kept = np.r_[0:50, 90:N]
    expected = calibration.measure(some[0][kept], some[1][kept], bins=5)
    assert found["num_rows"] == N - 40
    assert found["spearman"] == pytest.approx(expected["spearman"], abs=1e-3)
    assert found["mean_ratio"] == pytest.approx(expected["mean_ratio"], rel=1e-4)
    assert calibration.of_rows(rows_of(some, range(N)), "x", "new") is None


def test_transformed_rows_without_variance_are_named_and_left_out(some, caplog):
    found = calibration.of_rows(rows_of(some, missing=[7, 9]), "x", "new")
    assert found["num_rows"] == N - 2
    assert "2 transformed rows, 'row7' the first, have no x_log_variance" in caplog.text


def test_a_column_that_does_not_say_where_its_rows_come_from(some):
    rows = rows_of(some)
    del rows.fields["x_origin"]
    assert calibration.of_rows(rows, "x", "new")["num_rows"] == N


def test_sentences(some):
    measured = {
        "fastfill": calibration.measure(*some),
        "flat": calibration.measure(0 * some[0], some[1]),
    }
    measured = {name: calibration.mean([numbers]) for name, numbers in measured.items()}
    told, flat = sentences(measured)
    numbers = measured["fastfill"]
    assert told.startswith(f"fastfill, predicted variance against squared error of {N} transf")
    assert f"rank correlation {numbers['spearman']:.2f};" in told
    assert f"{np.exp(numbers['expected_calibration_error_log']):.2f} on average" in told
    assert "rank correlation none" in flat


def test_mean_of_runs(some):
    one, other = calibration.measure(*some), calibration.measure(some[0], 2 * some[1])
    both = calibration.mean([one, other])
    assert (both["num_rows"], both["num_runs"]) == (N, 2)
    assert both["mean_ratio"] == pytest.approx((one["mean_ratio"] + other["mean_ratio"]) / 2)
    for made, a, b in zip(both["bins"], one["bins"], other["bins"], strict=True):
        assert made["observed"] == pytest.approx((a["observed"] + b["observed"]) / 2)
    assert "rows, mean of 2 seeds: rank" in sentences({"x": both})[0]
    flat = calibration.measure(0 * some[0], some[1])
    assert calibration.mean([one, flat])["spearman"] is None


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_figure(tmp_path, some, theme):
    measured = {
        "fastfill": calibration.measure(*some),
        "zero": calibration.measure(some[0], 0 * some[1]),
    }
    for name in ("a.svg", "b.svg"):
        plot(measured, tmp_path / name, theme)
    text = (tmp_path / "a.svg").read_text()
    assert text == (tmp_path / "b.svg").read_text()
    assert "mathdefault" not in text
    plot({}, tmp_path / "none.png")
    assert (tmp_path / "none.png").stat().st_size > 0
