"""The tables and figures of methods and identities, from records written by hand."""

import statistics

import pytest

from fct_tf.report import identities, methods, page, verdict
from tests.report.records import Reader, record

COST = {
    "model_s": 125.0,
    "side_info_s": 0.0,
    "transformation_s": 5.25,
    "bytes_per_row": 1024,
    "bytes_per_row_upgrading": 1536,
    "upgrade_million_rows_s": 75.0,
    "map_million_queries_s": 0.0,
    "reembedded_share": 0.0,
    "reembed_million_rows_s": 0.0,
}


def estimate(mean, half_width=0.02):
    return {"mean": mean, "low": mean - half_width, "high": mean + half_width}


def upgrade(case, method, gain, seed=0, free="new", cost=COST, **changes):
    """A record of an upgraded case with its comparisons, mAP half as good as top-1."""
    return record(
        case,
        method,
        seed=seed,
        criterion={"cmc@1": {**estimate(0.1), "holds": True}},
        update_gain={"cmc@1": estimate(gain), "map": estimate(gain / 2), "cmc@5": None},
        negative_flips=estimate(0.0312),
        positive_flips=estimate(0.05),
        free_model=free,
        cost=cost,
        **changes,
    )


def study(gain=0.5, lost=0.04, seed=0):
    bct = {**COST, "transformation_s": 0.0, "bytes_per_row_upgrading": 1024}
    bct["upgrade_million_rows_s"] = 0.0
    pairs = {**COST, "side_info_s": None, "reembedded_share": 0.2, "reembed_million_rows_s": 45.0}
    query = {**bct, "transformation_s": 5.25, "map_million_queries_s": 2.0}
    return [
        record("old/old", top1=0.5, seed=seed),
        upgrade("new/T(old) fct", "fct", gain, seed, top1=0.6),
        upgrade("new/T(old) fct_pairs", "fct_pairs", gain, seed, cost=pairs, top1=0.65),
        upgrade("T(new)/old affine_query", "affine_query", -gain, seed, cost=query, top1=0.4),
        upgrade("bct/old", "bct", gain / 2, seed, cost=bct, top1=0.55),
        record("new/new", top1=0.7, seed=seed),
        record(
            "bct/bct",
            "bct",
            top1=0.7 - lost,
            seed=seed,
            new_lost={"cmc@1": estimate(lost), "map": estimate(lost + 0.01)},
            free_model="new",
        ),
        upgrade(
            "new/T(old) fct_pairs (remaining 80 %)", "fct_pairs", 0.9, seed, scoring="remaining"
        ),
    ]


def lines(told):
    return {line.split("  ")[0]: line for line in told.splitlines()}


def test_console_tables():
    gains, costs = (lines(told) for told in methods.text(study()).split("\n\n"))
    for found in (gains, costs):
        assert list(found)[2:-1] == [
            "new/T(old) fct",
            "new/T(old) fct_pairs",
            "T(new)/old affine_query",
            "bct/old",
        ]

    def told(found, case):
        return " ".join(found[case].split())

    assert told(gains, "new/T(old) fct").endswith(
        "60.00 [59.00-61.00] 70.00 [69.00-71.00] 40.00 [39.00-41.00] "
        "50.00 [48.00 to 52.00] 25.00 [23.00 to 27.00] 3.12 [1.12-5.12]"
    )
    assert "-50.00 [-52.00 to" in told(gains, "T(new)/old affine_query")
    nothing = " 0.00 0.00"
    assert told(costs, "new/T(old) fct").endswith(
        f"2 min 5 s + 5.2 s 1,024 (1,536) 1 min 15 s{nothing}"
    )
    assert told(costs, "bct/old").endswith(
        "2 min 5 s 1,024 nothing 4.00 [2.00 to 6.00] 5.00 [3.00 to 7.00]"
    )
    # Unknown is no zero, and pairs are embedded as well as mapped.
    pairs = told(costs, "new/T(old) fct_pairs")
    assert pairs.endswith(f"2 min 5 s + n/a + 5.2 s 1,024 (1,536) 2 min 0 s{nothing}")
    query = told(costs, "T(new)/old affine_query")
    assert query.endswith(f"1,024 nothing (2.0 s for queries){nothing}")
    assert "old/old has 50.00 / 60.00 / 30.00 in top-1, top-5, mAP" in methods.text(study())
    assert methods.text(study()).isascii(), "any console can print it"


def test_rows_of_several_seeds():
    made = {row["case"]: row for row in methods.rows(study(0.5, 0.04) + study(0.6, 0.01, seed=1))}
    bct = made["bct/old"]
    assert bct["seeds"] == [0, 1]
    assert bct["gain"]["top-1"]["mean"] == pytest.approx(0.275)
    assert bct["gain"]["top-1"]["std"] == pytest.approx(statistics.stdev([0.25, 0.3]))
    assert bct["gain"]["top-5"] is None and bct["gain"]["top-1"]["low"] is None
    assert bct["lost"]["top-1"]["mean"] == pytest.approx(0.025)
    assert bct["new"]["top-1"]["mean"] == pytest.approx(0.675)
    assert made["new/T(old) fct"]["lost"]["mAP"]["mean"] == 0
    assert (
        bct["cost"]["model_s"] == 125
        and made["new/T(old) fct_pairs"]["cost"]["side_info_s"] is None
    )
    told = methods.markdown(study(0.5) + study(0.6, seed=1))
    deviation = 100 * statistics.stdev([0.5, 0.6])
    assert f"55.00 ± {deviation:.2f}" in told and "standard deviation over 2 seeds" in told


def test_a_gain_that_one_seed_does_not_have_is_not_averaged():
    records = study(0.5) + study(0.6, seed=1)
    records[1]["update_gain"]["cmc@1"] = None
    made = {row["case"]: row for row in methods.rows(records)}
    assert made["new/T(old) fct"]["gain"]["top-1"] is None
    records[1]["update_gain"] = None
    assert methods.rows(records)[0]["gain"]["mAP"] is None
    assert "n/a" in lines(methods.text(records).split("\n\n")[0])["new/T(old) fct"]


def test_markdown_table():
    told = methods.markdown(study()).splitlines()
    assert told[0].startswith("| method | top-1 | top-5 | mAP | update gain top-1 |")
    assert told[1].count("---:") == told[0].count("|") - 2
    assert told[5].startswith("| bct/old | 55.00 [54.00–56.00] |")


def test_records_of_before_there_were_comparisons():
    records = [record("old/old"), record("new/T(old) fct", "fct", 0.6), record("new/new", top1=0.7)]
    assert methods.text(records) == methods.markdown(records) == identities.text(records) == ""
    assert verdict.text(records).count("\n\n") == 0


def verified(case, tar, tpir=None, seed=0):
    rates = [{"far": 0.001, "tar": tar, "low": tar - 0.1, "high": tar + 0.1}]
    found = {"rates": rates, "roc": [[0.0, 0.1], [0.01, tar], [1.0, 1.0]]}
    search = {"rates": [{"fpir": 0.01, "tpir": tpir, "low": None, "high": None}]}
    both = {"verification": found, "open_set": search if tpir is not None else None}
    return record(case, seed=seed, identities=both)


def test_identities():
    records = [verified("old/old", 0.4, 0.3), verified("new/new", 0.6), record("new/old")]
    found = lines(identities.text(records))
    assert found["old/old"].split() == ["old/old", "40.00", "[30.00-50.00]", "30.00"]
    assert found["new/new"].split() == ["new/new", "60.00", "[50.00-70.00]", "n/a"]
    assert (
        identities.markdown(records).splitlines()[0] == "| case | TAR@FAR 0.001 | TPIR@FPIR 0.01 |"
    )
    two = [*records[:1], verified("old/old", 0.5, 0.4, seed=1)]
    row = identities.rows(two)[0]
    assert row["rates"]["TAR@FAR 0.001"]["mean"] == pytest.approx(0.45)
    assert f"45.00 ± {100 * statistics.stdev([0.4, 0.5]):.2f}" in identities.markdown(two)
    assert identities.text(records).isascii()


def test_page(tmp_path):
    records = study()
    for at, tar in ((0, 0.4), (1, 0.5), (-2, 0.7)):
        records[at]["identities"] = verified("", tar, 0.3)["identities"]
    index = page.write(tmp_path / "report", title="t", records=records)
    read = Reader(index)
    for told in (
        "What the upgrades cost", "2 min 5 s + 5.2 s", "4.00", "lost: points of new/new",
        "Queries broken, %", "Identities", "TAR@FAR 0.001",
    ):  # fmt: skip
        assert told in read.text, told
    assert {"roc-light.svg", "roc-dark.svg"} <= set(read.files)
    # Of a compatible model nobody asks how it verifies by itself.
    roc = (index.parent / "roc-light.svg").read_text()
    assert "old/old" in roc and "new/T(old) fct" in roc and "bct/bct" not in roc
    # Nothing is clearly better than old/old: no gap to close.
    for one in records:
        one["update_gain"] = None
        one["cmc"] = {k: min(value, 0.5) for k, value in one["cmc"].items()}
    read = Reader(page.write(tmp_path / "report", title="t", records=records))
    assert "What the upgrades cost" in read.text and "Gap closed" not in read.text


def test_costs_that_nobody_knows_are_no_table():
    made = methods.rows([upgrade("new/T(old) x", "x", 0.5, cost={}, top1=0.6, free=None)])
    assert methods.costs(made) is None
    known = methods.costs(methods.rows(study()))
    assert known and len(known.header) <= 6
    assert known.lines[3][-2] == "4.00 [2.00 to 6.00]" and known.lines[0][-2] == "0.00"
