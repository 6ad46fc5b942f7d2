"""Backfilling a fused column: a re-embedded row is made of its old and its new embedding."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from fct_tf import backfill_gallery, sample_gallery
from fct_tf.backfill import backfill, evaluate
from fct_tf.common.errors import InputError
from fct_tf.gallery import replace, table
from fct_tf.models import saved_model
from fct_tf.retrieval import two_columns
from fct_tf.training.by_method import train_by_method
from fct_tf.upgrade.upgrade import Upgrade
from tests.backfill.photos import load, make_photos, new_embeddings
from tests.killing import interrupted

N, OLD = 24, 5


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Images, the new model, a fused search and a plain map to it, and the rows they learnt from.

    `g.lance` has the columns `old` and `new`, and both sides of the fused search, `fused` and
    `asked`; `apart.lance` has `fused` alone, and `plain.lance` the plain map's column.
    """
    directory = make_photos(tmp_path_factory.mktemp("photos"))
    known = table.open_gallery(directory / "all.lance")
    ids = known.read([]).ids[np.random.default_rng(5).permutation(N)]
    new = new_embeddings(directory)
    vectors = {
        "old": np.random.default_rng(0).normal(size=(N, OLD)).astype(np.float32),
        "new": np.stack([new[name] for name in ids]),
    }
    labels = np.array([name.split("/")[1] for name in ids], object)
    columns = [table.Column("old", OLD, "o" * 64), known.column("new")]
    path = str(directory / "g.lance")
    table.create(path, [table.Rows(ids, labels, vectors)], columns, rows_per_file=7)
    for name, settings in (("fusion", {"fusion": {"weight": 0.5}}), ("map", {})):
        train_by_method("affine", path, "old", "new", directory / name, settings=settings)
    Upgrade(path, directory / "fusion", "fused", output=f"{directory}/apart.lance").run()
    Upgrade(path, directory / "map", "plain", output=f"{directory}/plain.lance").run()
    Upgrade(path, directory / "fusion", "fused").run()
    Upgrade(path, directory / "fusion", "asked", side="query").run()
    return directory


@pytest.fixture
def own(photos, tmp_path):
    """A copy of the galleries and the images."""
    for name in ("images", "g.lance", "apart.lance", "plain.lance"):
        shutil.copytree(photos / name, tmp_path / name)
    return tmp_path


def job(photos, own, policy="random", budget="9", gallery="g.lance", model=None, **more):
    loaded, images = load(photos, own)
    return backfill.Backfill(
        own / gallery,
        "fused",
        model or loaded,
        images,
        policy,
        budget,
        batch_size=4,
        **{"transformation": str(photos / "fusion"), **more},
    ).run()


def check(photos, own, count, gallery="g.lance"):
    """So many rows are those of both embeddings, the others what they were."""
    made = table.open_gallery(own / gallery)
    rows = made.read(["fused"], fields=["fused_origin"])
    stored = table.open_gallery(photos / "g.lance").take(rows.ids, ["old", "new", "fused"]).vectors
    filled = rows.fields["fused_origin"] == "backfilled"
    assert filled.sum() == count
    fuse = saved_model.load_transformation(photos / "fusion").fuse
    expected = stored["fused"].copy()
    expected[filled] = fuse(stored["old"], stored["new"])[filled]
    np.testing.assert_allclose(rows.vectors["fused"], expected, rtol=1e-5, atol=1e-6)
    assert not np.allclose(rows.vectors["fused"][filled], stored["fused"][filled], atol=1e-3)
    return made, set(rows.ids[filled])


def test_a_backfilled_row_is_the_fused_one(own, photos):
    done = job(photos, own)
    assert done.embedded == 9
    made, first = check(photos, own, 9)
    column = made.column("fused")
    assert column.kind == "fused"
    # Queries are found as before, though it is not the column that it was.
    before = made.column("asked").space
    assert column.space != before and column.compatible_with == (before,)
    assert two_columns.evaluate(made, "asked", made, "fused")["num_gallery"] == N
    job(photos, own, budget="100%")
    made, filled = check(photos, own, N)
    assert first < filled and made.column("fused").compatible_with == (before,)
    rows = made.read(["fused", "asked"]).vectors
    np.testing.assert_allclose(rows["fused"], rows["asked"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("policy", ["distance", "ranks"])
def test_jobs_walk_along_the_curve_from_column_to_column(own, photos, policy):
    """The curve is an exchange of the rows of the one column for those of the other."""
    opened = table.open_gallery(own / "g.lance")
    (record,) = evaluate.evaluate(opened, "asked", opened, "fused", "asked", [policy])
    cuts = [point["rows"] for point in record["curve"]]
    steps = np.diff(cuts[:6]) if policy == "ranks" else [cuts[5]]
    for count in steps:
        more = {"target_column": "asked"} if policy == "distance" else {}
        job(photos, own, policy, str(count), **more)
    made, _ = check(photos, own, cuts[5])
    found = two_columns.evaluate(made, "asked", made, "fused")
    assert found["map"] == pytest.approx(record["curve"][5]["map"], abs=1e-9)
    whole = two_columns.evaluate(opened, "asked", opened, "asked")
    assert record["curve"][-1]["map"] == pytest.approx(whole["map"], abs=1e-9)


def test_a_column_of_its_own_needs_the_old_embeddings(own, photos):
    with pytest.raises(InputError, match="name that one with `sources`"):
        job(photos, own, gallery="apart.lance")
    for policy in ("random", "ranks"):
        job(photos, own, policy, "6", "apart.lance", sources=f"{own}/g.lance")
    check(photos, own, 12, "apart.lance")


@pytest.mark.parametrize("moment", ["staged", "before the commit", "before the tag"])
def test_killed_and_started_again(own, photos, moment):
    table.tag(own / "g.lance", "live")
    place = {
        "staged": (backfill, "_commit"),
        "before the commit": (replace, "replace_rows"),
        "before the tag": (table, "tag"),
    }[moment]
    with interrupted(*place):
        job(photos, own, tag="live")
    loaded, _ = load(photos, own)
    never = SimpleNamespace(name="new", space=loaded.space, dim=3, distance="l2", embed=None)
    assert job(photos, own, model=never, tag="live").embedded == 9
    check(photos, own, 9)
    check(photos, own, 9, "g.lance@live")


def door(run_door, photos, own, *more, column="fused", model="new", gallery="g.lance"):
    return run_door(
        backfill_gallery,
        f"--gallery={own}/{gallery}",
        f"--column={column}",
        f"--model={photos}/{model}.keras",
        f"--images=folder:{own}/images:val",
        "--budget=9",
        *more,
    )


def test_dry_run_and_door(own, photos, run_door, capsys):
    made_with = f"--transformation={photos}/fusion"
    version = table.open_gallery(own / "g.lance").version
    assert door(run_door, photos, own, "--policy=random", made_with, "--dry_run") == 0
    assert "rows:            9 of 24 left" in capsys.readouterr().out
    assert table.open_gallery(own / "g.lance").version == version
    assert door(run_door, photos, own, "--policy=random", made_with) == 0
    check(photos, own, 9)
    loaded, images = load(photos, own)
    found = backfill.Backfill(
        own / "g.lance", "fused", loaded, images, "random", "100%",
        transformation=str(photos / "fusion"),
    ).plan()  # fmt: skip
    assert (found.left, found.rows) == (15, 15)


@pytest.mark.parametrize(
    ("flags", "where", "told"),
    [
        (["--policy=random"], {}, "by --transformation"),
        (["--policy=random", "--transformation=MAP"], {}, "was not made by"),
        (["--policy=uncertainty", "--transformation=FUSION"], {}, "no log-variance"),
        (
            ["--policy=distance", "--transformation=FUSION", "--target_column=new"],
            {},
            "--side=query",
        ),
        (["--policy=random", "--transformation=FUSION"], {"model": "other"}, "name the model"),
        (["--policy=random", "--transformation=FUSION"], {"model": "wide"}, "name the model"),
        (["--policy=random", "--transformation=FUSION"], {"column": "asked"}, "of a gallery"),
        (
            ["--policy=random", "--transformation=MAP"],
            {"gallery": "plain.lance", "column": "plain"},
            "leave it out",
        ),
    ],
)
def test_what_a_fused_column_cannot_do_without(own, photos, run_door, capsys, flags, where, told):
    names = {"MAP": str(photos / "map"), "FUSION": str(photos / "fusion")}
    for short, path in names.items():
        flags = [flag.replace(f"={short}", f"={path}") for flag in flags]
    version = table.open_gallery(own / "g.lance").version
    assert door(run_door, photos, own, *flags, **where) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and told in error
    assert table.open_gallery(own / "g.lance").version == version


def test_backfilled_rows_of_it_are_no_pairs(own, photos, run_door, capsys):
    job(photos, own)
    flags = [f"--gallery={own}/g.lance", f"--output={own}/pairs.lance", "--backfilled=fused"]
    assert run_door(sample_gallery, *flags) == 2
    assert "sample_gallery --images and --model" in capsys.readouterr().err
    with pytest.raises(InputError, match="fused search"):
        train_by_method(
            *("affine", str(own / "g.lance"), "old", "new", own / "run"),
            pairs=str(own / "g.lance"),
            backfilled="fused",
        )
    # What a sample holds is data, not results.
    assert run_door(sample_gallery, *flags[:2], "--rows=3") == 0
    assert list(table.open_gallery(own / "pairs.lance").columns) == ["old", "new"]
