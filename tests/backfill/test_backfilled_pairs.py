"""Backfilled rows as pairs: of the next transformation, and of the jobs that follow."""

import shutil

import lance
import numpy as np
import pytest

from fct_tf import sample_gallery
from fct_tf.backfill import backfill, evaluate
from fct_tf.common.errors import InputError
from fct_tf.gallery import table
from fct_tf.models import artifact
from fct_tf.retrieval import two_columns
from fct_tf.training import transformation as transformation_training
from tests import tiny
from tests.backfill.photos import DIM, content, door, filled, job, load, new_embeddings


def pairs(run_door, own, *more, gallery="g.lance"):
    return run_door(
        sample_gallery,
        f"--gallery={own}/{gallery}",
        "--backfilled=x",
        f"--output={own}/pairs.lance",
        *more,
    )


def test_backfilled_rows_are_pairs_without_reading_an_image(own, photos, run_door, capsys):
    assert pairs(run_door, own) == 2
    assert "'x' has no backfilled rows" in capsys.readouterr().err
    job(photos, own)
    shutil.rmtree(own / "images")
    assert pairs(run_door, own, "--column=embedding_new") == 0
    gallery, made = (table.open_gallery(own / f"{name}.lance") for name in ("g", "pairs"))
    assert list(made.columns) == ["old", "side", "embedding_new"]
    rows = made.read(list(made.columns), with_labels=True)
    assert {*rows.ids} == filled(own / "g.lance")
    stored = gallery.take(rows.ids, ["old", "side", "x"])
    assert rows.labels.tolist() == stored.labels.tolist()
    for name, column in (("old", "old"), ("side", "side"), ("embedding_new", "x")):
        np.testing.assert_array_equal(rows.vectors[name], stored.vectors[column])
    column = made.column("embedding_new")
    assert (column.space, column.kind) == (gallery.column("x").compatible_with[0], "embedded")
    assert column.model == "new" and column.created_by["source"][0]["column"] == "x"


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--rows=3"], "leave --share, --rows"),
        (["--images=folder:x", "--model=y"], "leave --share, --rows"),
        (["--column=old"], "has a column 'old' already"),
        (["--backfilled=old"], "'old' is not one that upgrade_gallery made"),
        (["--backfilled=z"], "no embedding column 'z'"),
        (["--column=a.b"], "'a.b'"),
    ],
)
def test_bad_flags_of_pairs(own, photos, run_door, capsys, flags, message):
    job(photos, own)
    assert pairs(run_door, own, *flags) == 2
    assert message in capsys.readouterr().err
    assert not (own / "pairs.lance").exists()


def test_the_next_transformation_learns_from_them_and_keeps_them(own, photos, run_door, caplog):
    """Backfill, make pairs, train on them, upgrade again: the rows paid for stay to the bit."""
    from fct_tf.upgrade import upgrade

    new = new_embeddings(photos)
    space = table.open_gallery(own / "g.lance").column("x").compatible_with[0]
    gallery = table.open_gallery(own / "g.lance")
    rows = gallery.read(["old"])
    train = [gallery.column("old"), table.Column("embedding_new", DIM, space)]
    target = np.stack([new[name] for name in rows.ids]) + np.float32(5)  # Of another domain.
    vectors = {"old": rows.vectors["old"], "embedding_new": target}
    table.create(own / "train.lance", [table.Rows(rows.ids, None, vectors)], train)
    job(photos, own)
    assert pairs(run_door, own) == 0
    config = tiny.experiment(own)
    section = config.transformations.fct_no_side_info
    section.map = "affine"
    section.pairs.share, section.pairs.method = 0.2, "rows"
    transformation_training.train(
        config,
        "fct_no_side_info",
        f"{own}/train.lance",
        "old",
        "embedding_new",
        own / "run",
        pairs=f"{own}/pairs.lance",
    )
    info = artifact.load(own / "run/artifact").info
    assert info["facts"]["pairs"] == 9
    in_one_command(own, config)
    before = content(own / "g.lance")
    kept = filled(own / "g.lance")
    more = {"pairs": f"{own}/pairs.lance", "existing": "overwrite"}
    made = upgrade.Upgrade(own / "g.lance", own / "run", "x", **more).run().gallery
    assert "are transformed again" not in caplog.text
    rows = made.read(["x"], fields=["x_origin"])
    for name, vector, origin in zip(
        rows.ids, rows.vectors["x"], rows.fields["x_origin"], strict=True
    ):
        assert (origin == "backfilled") == (name in kept)
        assert (vector.tolist() == before[name]["x"]) == (name in kept)
    # Without them it says what is lost, and the version from which it is still to be had.
    job(photos, own, "random", "1")
    version = table.open_gallery(own / "g.lance").version
    upgrade.Upgrade(own / "g.lance", own / "run", "x", existing="overwrite").run()
    assert f"g.lance@{version} --backfilled=x" in caplog.text
    assert pairs(run_door, own, "--overwrite", gallery=f"g.lance@{version}") == 0
    assert table.open_gallery(own / "pairs.lance").num_rows == 10


def in_one_command(own, config):
    """Training on the gallery's backfilled rows is training on a table of them."""

    arguments = (config, "fct_no_side_info", f"{own}/train.lance", "old", "embedding_new")
    flags = {"pairs": f"{own}/g.lance", "backfilled": "x"}
    transformation_training.train(*arguments, own / "one", **flags)
    one, two = (artifact.load(own / name / "artifact") for name in ("one", "run"))
    for ours, theirs in zip(one.model.weights, two.model.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    kept, made = (table.open_gallery(own / name) for name in ("one/pairs.lance", "pairs.lance"))
    assert kept.dataset.to_table().equals(made.dataset.to_table())
    # What is there is used, and is not another's.
    transformation_training.train(*arguments, own / "one", existing="skip", **flags)
    assert table.open_gallery(own / "one/pairs.lance").version == kept.version
    with pytest.raises(InputError, match="column 'y' has no backfilled rows"):
        transformation_training.train(*arguments, own / "one", **{**flags, "backfilled": "y"})
    with pytest.raises(InputError, match="name it with `pairs`"):
        transformation_training.train(*arguments, own / "two", backfilled="x")
    assert not (own / "two").exists()
    # Whatever is refused changes no pairs and leaves none: those of the run are its own.
    refused_or_begun_anew(own, arguments, flags)


def refused_or_begun_anew(own, arguments, flags):
    """What becomes of WORKDIR/pairs.lance."""

    def pairs_there(name):
        return set(table.open_gallery(own / name / "pairs.lance").read([]).ids)

    began = pairs_there("one")
    path, other = own / "g.lance", own / "other.lance"
    shutil.copytree(path, other)
    more = sorted(set(content(other)) - began)[:3]
    rows = lance.dataset(str(other))
    rows.update({"x_origin": "'backfilled'"}, where=f"id in ('{more[0]}', '{more[1]}')")
    flags = {**flags, "pairs": str(other)}
    for wrong in ({"base": own / "one"}, {"side_info": "side"}):
        for name, existing in (("one", "overwrite"), ("two", "refuse")):
            with pytest.raises(InputError, match="leave `"):
                transformation_training.train(
                    *arguments, own / name, existing=existing, **flags, **wrong
                )
    assert pairs_there("one") == began and not (own / "two").exists()
    with pytest.raises(InputError, match="exists already; pass `overwrite=True`"):
        transformation_training.train(*arguments, own / "one", **flags)
    # A finished run goes on being the one of its own pairs, though more rows are backfilled now.
    transformation_training.train(*arguments, own / "one", existing="skip", **flags)
    assert pairs_there("one") == began
    rows.update({"x_origin": "'transformed'"}, where=f"id = '{min(began)}'")
    with pytest.raises(InputError, match=f"row '{min(began)}' is not backfilled in 'x'"):
        transformation_training.train(*arguments, own / "one", existing="skip", **flags)
    transformation_training.train(*arguments, own / "one", existing="overwrite", **flags)
    assert pairs_there("one") == began - {min(began)} | {*more[:2]}
    assert not list((own / "one").glob(".*"))


def test_jobs_that_learn_from_those_before_them_walk_along_their_curve(
    own, photos, run_door, capsys
):
    """The policy `ranks`: what was backfilled tells, by the transformation, what comes next."""
    from fct_tf.upgrade import upgrade

    new, path = new_embeddings(photos), own / "g.lance"
    gallery = table.open_gallery(path)
    column = table.Column("new", DIM, gallery.column("x").compatible_with[0])
    table.add_column(gallery, column, lambda rows: np.stack([new[i] for i in rows.ids]), [])
    config = tiny.experiment(own)
    config.transformations.fct_no_side_info.map = "affine"
    arguments = ("fct_no_side_info", str(path), "old", "new", own / "run")
    transformation_training.train(config, *arguments)
    upgrade.Upgrade(path, own / "run", "x", source="old", existing="overwrite").run()
    opened = table.open_gallery(path)
    (record,) = evaluate.evaluate(opened, "new", opened, "x", "new", ["ranks"])
    transformation = {"transformation": str(own / "run")}
    cuts = [point["rows"] for point in record["curve"]]
    for before, after in zip(cuts[:9], cuts[1:9], strict=False):
        job(photos, own, "ranks", str(after - before), **transformation)
    found = two_columns.evaluate(table.open_gallery(path), "new", table.open_gallery(path), "x")
    point = record["curve"][8]
    assert found["map"] == pytest.approx(point["map"], abs=1e-9)
    assert found["cmc"] == {k: point["cmc"][k] for k in ("1", "5")}
    assert len(filled(path)) == cuts[8]
    # Without its transformation there is nothing to learn by.
    assert door(run_door, photos, own, "--policy=ranks") == 2
    assert "--transformation: name what the column was made with" in capsys.readouterr().err
    flag = f"--transformation={own}/run"
    assert door(run_door, photos, own, "--policy=random", flag) == 2
    assert "leave it out" in capsys.readouterr().err


def test_a_column_in_a_gallery_of_its_own_goes_the_same_way(own, photos, run_door, capsys):
    """Ranks, pairs and training read what it was made from in the gallery it was made from."""
    from fct_tf.upgrade import upgrade

    new, path, apart = new_embeddings(photos), own / "g.lance", own / "apart.lance"
    gallery = table.open_gallery(path)
    column = table.Column("new", DIM, gallery.column("x").compatible_with[0])
    train = shutil.copytree(path, own / "train.lance")
    stored = gallery.read(["old", "side"], with_labels=True)
    back = {name: values[::-1] for name, values in stored.vectors.items()}
    mixed = own / "mixed.lance"  # The same rows in another order.
    columns = [gallery.column(name) for name in back]
    table.create(mixed, [table.Rows(stored.ids[::-1], stored.labels[::-1], back)], columns)
    table.add_column(
        table.open_gallery(train), column, lambda rows: np.stack([new[i] for i in rows.ids]), []
    )
    config = tiny.experiment(own)
    config.transformations.fct_no_side_info.map = "affine"
    arguments = (config, "fct_no_side_info", str(train), "old", "new")
    transformation_training.train(*arguments, own / "run")
    upgrade.Upgrade(path, own / "run", "x", output=str(apart)).run()
    upgrade.Upgrade(path, own / "run", "x", existing="overwrite").run()
    model, images = load(photos, own)
    for budget in ("6", "3", "4"):
        for where, sources in ((path, ""), (apart, str(mixed))):
            more = {"transformation": str(own / "run"), "sources": sources}
            backfill.Backfill(where, "x", model, images, "ranks", budget, **more).run()
        assert len(filled(apart)) == len(filled(path))
    assert filled(apart) == filled(path)
    by_id = content(path)
    for name, row in content(apart).items():
        assert {"id", "label", "x", "x_origin"} == set(row)
        assert row == {field: by_id[name][field] for field in row}

    flags = [f"--output={own}/pairs.lance", "--backfilled=x", "--column=new"]
    assert run_door(sample_gallery, f"--gallery={apart}", *flags) == 2
    assert f"{path}@" in capsys.readouterr().err and not (own / "pairs.lance").exists()
    assert run_door(sample_gallery, f"--gallery={apart}", *flags, f"--sources={mixed}") == 0
    made = table.open_gallery(own / "pairs.lance")
    assert list(made.columns) == ["old", "side", "new"]
    rows = made.read(["old", "new"], with_labels=True)
    for name, label, old, vector in zip(
        rows.ids, rows.labels, rows.vectors["old"], rows.vectors["new"], strict=True
    ):
        assert (label, by_id[name]["x_origin"]) == (by_id[name]["label"], "backfilled")
        np.testing.assert_array_equal(old, np.float32(by_id[name]["old"]))
        np.testing.assert_array_equal(vector, np.float32(by_id[name]["x"]))

    section = config.transformations.fct_no_side_info
    section.pairs.share, section.pairs.method = 0.2, "rows"
    known = {"pairs": str(apart), "backfilled": "x", "sources": str(mixed)}
    transformation_training.train(*arguments, own / "one", **known)
    transformation_training.train(*arguments, own / "two", pairs=str(own / "pairs.lance"))
    one, two = (artifact.load(own / name / "artifact") for name in ("one", "two"))
    for ours, theirs in zip(one.model.weights, two.model.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    kept = str(own / "one" / "pairs.lance")
    more = {"output": str(apart), "pairs": kept, "existing": "overwrite"}
    again = upgrade.Upgrade(path, own / "one", "x", **more).run().gallery
    assert again.version == 5 and filled(apart) == filled(path)


@pytest.mark.parametrize("policy", ["random", "uncertainty"])
def test_sources_are_for_ranks_and_backfilled_rows(own, photos, run_door, capsys, policy):
    sources = f"--sources={own}/g.lance"
    assert door(run_door, photos, own, f"--policy={policy}", sources) == 2
    assert "only --policy=ranks reads" in capsys.readouterr().err
    flags = [f"--gallery={own}/g.lance", f"--output={own}/pairs.lance", "--rows=3"]
    assert run_door(sample_gallery, *flags, sources) == 2
    assert "goes with --backfilled" in capsys.readouterr().err

    config = tiny.experiment(own)
    with pytest.raises(InputError, match="goes with `backfilled`"):
        transformation_training.train(
            config, "fct_no_side_info", "g", "old", "new", own / "r", sources="x"
        )
