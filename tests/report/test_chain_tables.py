"""Chains of versions as tables."""

from fct_tf.report import (
    chain_tables,
    page,
)
from tests.report.records import Reader, study


def chains():
    """Two chains of three versions, worked out by hand."""

    def values(matrix, ac, am):
        seeds = {"0": {"matrix": matrix, "ac": ac, "am": am}}
        return {"matrix": matrix, "ac": ac, "am": am, "seeds": seeds}

    low, high = [[[0.3], [0.01, 0.4], [0.02, 0.03, 0.5]], [[0.3], [0.31, 0.4], [0.32, 0.39, 0.5]]]
    return {
        "alone": {
            "versions": ["v1", "v2", "v3"],
            "metrics": {"cmc@1": values(low, 0.0, 0.21), "map": values(low, 0.0, 0.21)},
        },
        "a|<b>": {
            "versions": ["v1", "v2|x", "v3<y>"],
            "metrics": {"cmc@1": values(high, 2 / 3, 0.37), "map": values(high, 2 / 3, 0.37)},
        },
    }


def test_chains_as_text():
    lines = chain_tables.text(chains()).splitlines()
    assert lines[14:20] == [
        "a|<b>, top-1       v1     v2|x  v3<y>",
        "------------  -------  -------  -----",
        "v1            30.00",
        "v2|x          31.00 +  40.00",
        "v3<y>         32.00 +  39.00 -  50.00",
        "AC 0.67, AM 37.00",
    ]
    assert "alone, mAP" in lines[7] and lines[-1].startswith("Percent; row: version of the queries")
    assert "seeds" not in lines[-1]


def test_chains_as_markdown():
    blocks = chain_tables.markdown(chains()).split("\n\n")
    assert blocks[4].splitlines() == [
        r"| a\|<b>, top-1 | v1 | v2\|x | v3<y> |",
        "| --- | ---: | ---: | ---: |",
        "| v1 | 30.00 |  |  |",
        r"| v2\|x | 31.00 ▲ | 40.00 |  |",
        "| v3<y> | 32.00 ▲ | 39.00 ▼ | 50.00 |",
    ]
    assert blocks[5] == "AC 0.67, AM 37.00"


def test_chains_on_the_page(tmp_path):
    several = chains()
    several["alone"]["metrics"]["map"]["seeds"]["1"] = {}
    index = page.write(tmp_path / "report", title="t", records=study(), chains=several)
    read = Reader(index)
    for told in ("Chains of versions", "a|<b>", "v3<y>", "31.00 ▲", "39.00 ▼", "0.67", "2 seeds"):
        assert told in read.text, told
    shades = [
        attributes["style"]
        for tag, attributes in read.tags
        if tag == "td" and attributes.get("class") == "shade"
    ]
    # One scale for both chains: 1 % is the least, 50 % the greatest.
    assert len(shades) == 24 and shades[1] == "--shade:0.00" and shades[5] == "--shade:1.00"
    assert shades[12] == f"--shade:{0.29 / 0.49:.2f}"
    without = page.write(tmp_path / "other", title="t", records=study())
    assert "Chains" not in Reader(without).text


def test_chains_that_are_all_the_same_have_no_shade():
    made = chains()
    del made["alone"]
    made["a|<b>"]["metrics"]["map"]["matrix"] = [[0.5], [0.5, 0.5], [0.5, 0.5, 0.5]]
    assert chain_tables.section(made).count("--shade:0.00") == 6 + 1
