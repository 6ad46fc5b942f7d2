"""Images of a backfilling: which are opened, and which are missing, broken or gone."""

from types import SimpleNamespace

import numpy as np
import pytest

from fct_tf.backfill import backfill, staged
from fct_tf.common.errors import InputError
from fct_tf.gallery import table
from fct_tf.ingest import embed
from tests.backfill.photos import (
    DIM,
    N,
    by_uncertainty,
    check,
    content,
    door,
    file,
    job,
    load,
    snapshot,
)


def test_only_images_of_chosen_rows_are_opened(own, photos):
    """All others are no images at all, and nobody notices."""
    before = content(own / "g.lance")
    chosen = by_uncertainty(before, 9)
    for name in before.keys() - set(chosen):
        file(own, name).write_bytes(b"none")
    done = job(photos, own)
    assert (done.embedded, done.skipped) == (9, [])
    check(photos, before, content(own / "g.lance"), chosen)


def test_missing_and_broken_images(own, photos, run_door, capsys):
    before = content(own / "g.lance")
    chosen = by_uncertainty(before, 12)
    gone, broken = chosen[2], chosen[4]
    kept = {name: file(own, name).read_bytes() for name in (gone, broken)}
    file(own, gone).unlink()
    file(own, broken).write_bytes(kept[broken][:40])
    report = own / "g.lance.x.skipped.tsv"
    assert door(run_door, photos, own) == 0
    assert f"8 rows backfilled, 2 skipped, see {report}" in capsys.readouterr().out
    assert report.read_text().splitlines() == [
        f"{gone}\t{staged.MISSING}",
        f"{broken}\t{staged.UNREADABLE}",
    ]
    # A row without image does not use the budget up, a broken one does.
    check(photos, before, content(own / "g.lance"), {*chosen[:10]} - {gone, broken})
    record = table.open_gallery(own / "g.lance").column("x").created_by["backfilled"][0]
    assert (record["rows"], record["skipped"]) == (8, 2)
    # Once they are there again, the next job takes them first.
    for name, encoded in kept.items():
        file(own, name).write_bytes(encoded)
    assert door(run_door, photos, own, budget="3") == 0
    check(photos, before, content(own / "g.lance"), {*chosen[:11]})
    assert not report.exists()


def test_report_of_ones_own(own, photos, run_door, capsys):
    file(own, by_uncertainty(content(own / "g.lance"), 1)[0]).unlink()
    report = own / "skipped.tsv"
    assert door(run_door, photos, own, f"--skipped={report}", budget="1") == 0
    assert len(report.read_text().splitlines()) == 1
    before = snapshot(own)
    assert door(run_door, photos, own, f"--skipped={report}", budget="1") == 2
    assert "skipped.tsv: exists already; pass --overwrite" in capsys.readouterr().err
    assert snapshot(own) == before
    assert door(run_door, photos, own, f"--skipped={report}", "--overwrite", budget="1") == 0


def test_no_image_at_all(own, photos, run_door, capsys):
    """Nothing is committed, all is reported, and that is no error."""
    for path in (own / "images/val").rglob("*.png"):
        path.write_bytes(b"none")
    version = table.open_gallery(own / "g.lance").version
    assert door(run_door, photos, own, budget="100%") == 0
    assert "0 rows backfilled, 24 skipped" in capsys.readouterr().out
    assert table.open_gallery(own / "g.lance").version == version
    assert len((own / "g.lance.x.skipped.tsv").read_text().splitlines()) == N
    assert not (own / "g.lance.jobs").exists()


def test_images_deleted_while_the_job_runs(own, photos, monkeypatch):
    monkeypatch.setattr(embed, "CHUNK_BATCHES", 1)
    before = content(own / "g.lance")
    order = by_uncertainty(before, N)
    loaded, images = load(photos, own)
    doomed = order[-2:]

    def deleting(pixels):
        for name in doomed:
            file(own, name).unlink(missing_ok=True)
        return loaded.embed(pixels)

    model = SimpleNamespace(name="new", space=loaded.space, dim=DIM, distance="l2", embed=deleting)
    done = backfill.Backfill(
        own / "g.lance", "x", model, images, "uncertainty", "100%", batch_size=1
    ).run()
    assert done.skipped == [(name, staged.UNREADABLE) for name in doomed]
    assert done.embedded == N - 2
    check(photos, before, content(own / "g.lance"), order[:-2])


def test_images_that_are_read_in_their_own_order_only(own, photos):
    """As a TFDS data set's: places rise, and there is no budget of time."""
    import dataclasses

    model, images = load(photos, own)
    source, asked = images.source, []

    def encoded(places):
        asked.append(places)
        return source.encoded(places)

    ordered = dataclasses.replace(
        images, source=dataclasses.replace(source, random_access=False, encoded=encoded)
    )
    before = content(own / "g.lance")
    arguments = (own / "g.lance", "x", model, ordered, "uncertainty")
    with pytest.raises(InputError, match="can only be read in its own order"):
        backfill.Backfill(*arguments, "10min").run()
    assert not asked and not (own / "g.lance.jobs").exists()
    backfill.Backfill(*arguments, "9", batch_size=4).run()
    assert (np.diff(asked[0]) > 0).all() and len(asked[0]) == 9
    check(photos, before, content(own / "g.lance"), by_uncertainty(before, 9))
