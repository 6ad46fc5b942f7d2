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
