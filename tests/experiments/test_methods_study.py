"""A study of a transformation and a compatible model: what stands beside their accuracy."""

import numpy as np
import pytest

from fct_tf import config as schema
from fct_tf.common.errors import InputError
from fct_tf.common.files import read_json
from fct_tf.experiments import study as study_run
from fct_tf.gallery import table
from fct_tf.gallery.columns import check_spaces
from fct_tf.models import backbone
from fct_tf.report import methods
from fct_tf.retrieval.identities import verify
from tests import tiny

pytestmark = pytest.mark.slow  # A whole study; test_study.py has one that is fast.


def experiment(images):
    """Old, new and BCT; an affine map, and the paper's corrected by a quarter of the gallery."""
    config = tiny.experiment(images, epochs=1)
    config.evaluation.ks = (1, 5)
    config.models.bct = config.models.new.copy_and_resolve_references()
    config.models.bct.compatibility.method = "bct"
    config.side_info.method = "none"
    del config.transformations["fct"]
    config.transformations.affine = schema.transformation(side_info=False)
    config.transformations.affine.map = "affine"
    pairs = config.transformations.fct_no_side_info.copy_and_resolve_references()
    pairs.base, pairs.pairs.share = "fct_no_side_info", 0.25
    config.transformations.fct_pairs = pairs
    config.evaluation.identities.update(fars=(0.1,), fpirs=(0.2,))
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The experiment, its working directory and the records."""
    directory = tmp_path_factory.mktemp("methods")
    config = experiment(tiny.image_folder(directory / "images", classes=3, per_class=8))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backbone, "build", tiny.one_layer)
        yield config, directory / "run", study_run.study(config, directory / "run")


def by_case(records):
    return {record["case"]: record for record in records}


def test_upgrades_are_compared_with_what_was_before(finished):
    _, _, records = finished
    found = by_case(records)
    for note in ("", " (remaining 75 %)"):
        old, new = found[f"old/old{note}"], found[f"new/new{note}"]
        for case in ("new/T(old) affine", "new/T(old) fct_pairs", "bct/old"):
            record = found.get(case + note)
            if record is None:
                continue
            for name, value in record["criterion"].items():
                after, before, best = (
                    one["map"] if name == "map" else one["cmc"][name.partition("@")[2]]
                    for one in (record, old, new)
                )
                assert value["mean"] == pytest.approx(after - before)
                if gain := record["update_gain"][name]:
                    assert gain["mean"] == pytest.approx((after - before) / (best - before))
            change = record["positive_flips"]["mean"] - record["negative_flips"]["mean"]
            assert change == pytest.approx(record["criterion"]["cmc@1"]["mean"])
    lost = found["bct/bct"]["new_lost"]["map"]["mean"]
    assert lost == pytest.approx(found["new/new"]["map"] - found["bct/bct"]["map"])
    assert found["bct/old"]["free_model"] == "new"
    assert "criterion" not in found["new/old"] and "criterion" not in found["new/new"]


def test_costs(finished):
    _, workdir, records = finished
    found = by_case(records)
    bct, affine, pairs = (
        found[case]["cost"] for case in ("bct/old", "new/T(old) affine", "new/T(old) fct_pairs")
    )
    assert (bct["bytes_per_row"], bct["bytes_per_row_upgrading"]) == (32, 32)
    assert (affine["bytes_per_row"], affine["bytes_per_row_upgrading"]) == (32, 64)
    assert bct["transformation_s"] == bct["upgrade_million_rows_s"] == bct["side_info_s"] == 0
    assert bct["model_s"] > 0 and affine["model_s"] > 0 and affine["transformation_s"] > 0
    fit_s = read_json(workdir / "seed_0" / "fct_pairs" / "artifact" / "model.json")["facts"][
        "fit_s"
    ]
    assert 0 < fit_s < pairs["transformation_s"], "the training of its base counts"
    for cost in (affine, pairs):
        assert cost["upgrade_million_rows_s"] > 0 == cost["map_million_queries_s"]
    assert (affine["reembedded_share"], affine["reembed_million_rows_s"]) == (0, 0)
    images_s = read_json(workdir / "seed_0" / "new" / "cost.json")["embed_million_images_s"]
    assert pairs["reembed_million_rows_s"] == pytest.approx(0.25 * images_s)
    assert "cost" not in found["old/old"] and "cost" not in found["new/old"]


def test_identities(finished):
    _, workdir, records = finished
    gallery = table.open_gallery(str(workdir / "seed_0" / "rows" / "gallery" / "gallery.lance"))
    pairs = workdir / "seed_0" / "rows" / "pairs_0.25_random" / "pairs.lance"
    left_out = table.open_gallery(str(pairs)).read([]).ids
    for case, columns, without in (
        ("old/old", ("embedding_old", "embedding_old"), ()),
        ("new/T(old) affine", ("embedding_new", "embedding_affine"), ()),
        ("old/old (remaining 75 %)", ("embedding_old", "embedding_old"), left_out),
    ):
        expected = verify(
            *(gallery, columns[0], gallery, columns[1]),
            fars=(0.1,),
            fpirs=(0.2,),
            distance="l2",
            bootstrap=50,
            without=without,
        )
        made = by_case(records)[case]["identities"]
        assert made == {key: expected[key] for key in ("verification", "open_set")}
        kept = gallery.num_rows - len(without)
        counts = [made["open_set"][f"num_{what}"] for what in ("enrolled", "mated", "non_mated")]
        assert sum(counts) == kept


def test_the_report_shows_all_methods(finished):
    _, workdir, records = finished
    made = [row["case"] for row in methods.rows(records)]
    assert made == [
        *("new/T(old) affine", "new/T(old) fct_no_side_info", "new/T(old) fct_pairs", "bct/old")
    ]
    html = (workdir / "report" / "index.html").read_text()
    assert "<h2>What the upgrades cost</h2>" in html and "<h2>Identities</h2>" in html
    assert all(case in html.replace("<wbr>", "") for case in made) and "roc-light.svg" in html
    assert (workdir / "report" / "roc-light.svg").exists()


def test_a_second_run_repeats_and_measures_nothing(finished):
    config, workdir, records = finished
    kept = [
        path
        for name in ("cost.json", "results.json", "per_query.npz", "identities.json")
        for path in workdir.glob(f"seed_0/**/{name}")
    ]
    assert len({path.name for path in kept}) == 4
    before = {path: path.stat().st_mtime_ns for path in kept}
    assert study_run.study(config, workdir) == records
    assert {path: path.stat().st_mtime_ns for path in kept} == before
    # Without its results by query a case is evaluated once more, nothing else.
    evaluation = workdir / "seed_0" / "evaluation" / "bct_old"
    (evaluation / "per_query.npz").unlink()
    assert "identities" not in read_json(evaluation / "settings.json")["evaluation"]
    assert study_run.study(config, workdir) == records
    changed = {path for path in kept if path.stat().st_mtime_ns != before[path]}
    assert changed == {evaluation / "per_query.npz", evaluation / "results.json"}


def test_other_rates_are_computed_alone(finished):
    config, workdir, records = finished
    results = {p: p.stat().st_mtime_ns for p in workdir.glob("seed_0/evaluation/*/results.json")}
    config.evaluation.identities.fpirs = ()
    try:
        changed = by_case(study_run.study(config, workdir))["new/new"]
        config.evaluation.identities.fars = ()
        without = by_case(study_run.study(config, workdir))["new/new"]
    finally:
        config.evaluation.identities.update(fars=(0.1,), fpirs=(0.2,))
    assert changed["identities"]["open_set"] is None
    kept = by_case(records)["new/new"]["identities"]["verification"]
    assert changed["identities"]["verification"] == kept
    assert "identities" not in without
    assert {path: path.stat().st_mtime_ns for path in results} == results


def test_a_free_model_is_not_compared_with_the_old_one_by_mistake(finished):
    _, workdir, _ = finished
    gallery = table.open_gallery(str(workdir / "seed_0" / "rows" / "gallery" / "gallery.lance"))
    old, new, bct = (gallery.column(f"embedding_{name}") for name in ("old", "new", "bct"))
    with pytest.raises(InputError, match="allow_space_mismatch"):
        check_spaces(new, old)
    check_spaces(bct, old)
    with pytest.raises(InputError, match="allow_space_mismatch"):
        check_spaces(new, bct)
    assert np.isfinite(gallery.read(["embedding_bct"]).vectors["embedding_bct"]).all()


@pytest.mark.parametrize(
    "key, value",
    [("fars", (0.0,)), ("fpirs", (0.5, 1.0)), ("absent_share", 1.0), ("enrolled_share", 0.0)],
)
def test_wrong_settings_are_named(finished, key, value):
    config = finished[0].copy_and_resolve_references()
    config.evaluation.identities[key] = value
    with pytest.raises(InputError, match=f"evaluation.identities.{key}"):
        study_run.study(config, finished[1])
