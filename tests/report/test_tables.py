"""One table, three renderings."""

import pytest

from fct_tf.report.tables import IN_BRACKETS, Table

HEADER = ["case", "top-1", "gain"]
LINES = [
    ["old|old", "71.03 [70.30–71.80]", ""],
    ["a & b", "66.21 ± 0.42", "-4.82"],
]
LEGEND = f"Percent; {IN_BRACKETS}: 95 % interval; ±: over 3 seeds."


@pytest.mark.parametrize(
    "rendering, expected",
    [
        (
            "text",
            "case                   top-1   gain\n"
            "-------  -------------------  -----\n"
            "old|old  71.03 [70.30-71.80]\n"
            "a & b         66.21 +/- 0.42  -4.82\n"
            "Percent; in brackets: 95 % interval; +/-: over 3 seeds.",
        ),
        (
            "markdown",
            "| case | top-1 | gain |\n| --- | ---: | ---: |\n"
            "| old\\|old | 71.03 [70.30–71.80] |  |\n| a & b | 66.21 ± 0.42 | -4.82 |\n\n"
            "Percent; in brackets: 95 % interval; ±: over 3 seeds.",
        ),
        (
            "html",
            '<div class="scroll" tabindex="0" role="group" aria-label="A &lt;name&gt;"><table>'
            '<caption class="unseen">A &lt;name&gt;</caption>'
            '<thead><tr><th scope="col" class="text">case</th>'
            '<th scope="col">top-1</th><th scope="col">gain</th></tr></thead>\n'
            '<tbody><tr><th scope="row">old|old</th>'
            '<td data-label="top-1">71.03<small>70.30–71.80</small></td>'
            '<td data-label="gain"></td></tr>\n'
            '<tr><th scope="row">a &amp; b</th>'
            '<td data-label="top-1">66.21<small>± 0.42</small></td>'
            '<td data-label="gain">−4.82</td></tr></tbody></table></div>\n'
            '<p class="note">Percent; below the value: 95 % interval; ±: over 3 seeds.</p>',
        ),
    ],
)
def test_renderings_of_one_table(rendering, expected):
    arguments = {"name": "A <name>"} if rendering == "html" else {}
    assert getattr(Table(HEADER, LINES, LEGEND), rendering)(**arguments) == expected


def test_names_of_two_columns_stand_left():
    made = Table(["method", "policy", "AUC"], [["fct", "random", "7.1"]], "Percent.", left=2)
    assert made.text().splitlines()[2] == "fct     random  7.1"
    assert made.markdown().splitlines()[1] == "| --- | --- | ---: |"


def test_marks_hang_behind_the_numbers():
    """Numbers stand below each other on the console, and marks have their colour on the page."""
    made = Table(["gallery", "v1", "v2"], [["v1", "60.05", ""], ["v2", "7.19 ▼", "67.96"]])
    assert made.text().splitlines()[2:] == ["v1       60.05", "v2        7.19 -  67.96"]
    assert made.markdown().splitlines()[-1] == "| v2 | 7.19 ▼ | 67.96 |"
    assert '<td data-label="v1">7.19 <span class="down">▼</span></td>' in made.html("x")
    assert "note" not in made.html("x")


def test_shades_are_those_of_the_cells_behind_the_name():
    html = Table(["case", "v1", "v2"], [["a", "1", "2"]], shades=[[0.25]]).html("x")
    assert '<td data-label="v1" class="shade" style="--shade:0.25">1</td>' in html
    assert '<td data-label="v2">2</td>' in html
