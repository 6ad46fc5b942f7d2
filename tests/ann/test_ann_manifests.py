"""The manifest of an index, in one piece and in shards: what was written into it by hand."""

import json

import numpy as np
import pytest

import fct_tf
from fct_tf import build_index, search_index
from fct_tf.ann import index, manifests
from fct_tf.common.errors import InputError
from fct_tf.gallery import table
from tests.gallery.tables import column, rows


@pytest.fixture(scope="module", params=[None, 2], ids=["one piece", "shards"])
def made(request, tmp_path_factory):
    root = tmp_path_factory.mktemp("manifests")
    table.create(root / "g.lance", [rows(101)], [column("a")], rows_per_file=60)
    index.build(root / "g.lance", "a", root / "i", shards=request.param)
    return root


def places(value, path=()):
    """The way to each entry that an index is opened with."""
    for name, inner in value.items():
        if (*path, name) in {("versions",), ("training", "found"), ("asked",)}:
            continue
        if path[:1] not in (("settings",), ("fragments",)):
            yield (*path, name)
        if isinstance(inner, dict) and len(path) < 2:
            yield from places(inner, (*path, name))


def changed(manifest, path, value=None, *, remove=False):
    changed = json.loads(json.dumps(manifest))
    part = changed
    for name in path[:-1]:
        part = part[name]
    if remove:
        del part[path[-1]]
    else:
        part[path[-1]] = value
    return changed


def test_what_is_missing_or_of_another_type_is_refused_by_name(made):
    """By whoever opens, searches, updates or describes it."""
    file = made / "i" / "manifest.json"
    before = file.read_text()
    manifest = json.loads(before)
    tried = 0
    try:
        for path in places(manifest):
            if path == ("recall",):
                continue
            for broken in (
                changed(manifest, path, remove=True),
                *(changed(manifest, path, value) for value in ([1], {"x": 1}, 1.5, True)),
            ):
                listed = broken["column"] if isinstance(broken.get("column"), dict) else {}
                if path[1:] == ("compatible_with",) and listed.get("compatible_with") == [1]:
                    continue
                if path[1:] == ("rows.npy",) and path[1] not in broken["files"]:
                    continue  # What is not named is not compared with what was written.
                file.write_text(json.dumps(broken))
                try:
                    index.open_index(made / "i")
                    message = "opened"
                except InputError as error:
                    message = str(error)
                assert "\n" not in message and str(made / "i") in message, (path, message)
                assert "build it again" in message or "install" in message, (path, message)
                tried += 1
    finally:
        file.write_text(before)
    assert tried > 80
    assert index.open_index(made / "i").num_rows == 101


@pytest.mark.parametrize(
    "path, value",
    [
        (("settings", "num_leafs"), 5),
        (("settings", "num_leaves"), "5"),
        (("fragments", "first"), "x"),
        (("recall",), "high"),
        (("column", "distance"), "manhattan"),
    ],
)
def test_values_that_no_index_has(made, path, value):
    broken = changed(manifests.read(made / "i"), path, value)
    file = made / "i" / "manifest.json"
    before = file.read_text()
    try:
        file.write_text(json.dumps(broken))
        for call in (lambda: index.Index(made / "i"), lambda: index.load_index(made / "i")):
            with pytest.raises(InputError, match=r"manifest.json: broken; build it again"):
                call()
    finally:
        file.write_text(before)


def test_one_that_says_nothing_of_its_recall(made):
    """An earlier version of fct_tf measured none."""
    file = made / "i" / "manifest.json"
    before = file.read_text()
    try:
        file.write_text(json.dumps(changed(json.loads(before), ("recall",), remove=True)))
        opened = index.open_index(made / "i")
        assert opened.num_rows == 101 and "recall" not in opened.manifest
        assert opened.update().count == 0
    finally:
        file.write_text(before)


@pytest.mark.parametrize("place", ["s3://", "s3://bucket/photos.index", "gs://bucket/i", "s3:/b/i"])
def test_an_index_lies_on_a_disk(made, tmp_path, run_door, capsys, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    query = [f"--query={made / 'g.lance'}", "--query_column=a", "--output=out.json"]
    build = [f"--gallery={made / 'g.lance'}", "--column=a", f"--output={place}"]
    for command, flags in (
        (search_index, [f"--index={place}", *query]),
        (build_index, build),
        (build_index, [*build, "--dry_run"]),
        (build_index, [*build, "--shards=2"]),
        (build_index, ["--update", f"--output={place}"]),
    ):
        assert run_door(command, *flags) == 2
        message = capsys.readouterr().err.splitlines()[-1]
        assert place in message and ("on this machine" in message or "write s3://" in message)
    assert list(tmp_path.iterdir()) == []
    opened = fct_tf.Gallery.open(made / "g.lance")
    with pytest.raises(InputError, match="on this machine|write s3://"):
        opened.search(np.zeros(4), "a", method="scann", index=place)


def test_a_file_uri_is_a_path(made, tmp_path):
    opened = index.open_index(f"file://{made / 'i'}")
    assert opened.num_rows == 101 and opened.update().count == 0
    again = index.build(made / "g.lance", "a", f"file://{tmp_path / 'i'}")
    assert index.open_index(tmp_path / "i").num_rows == again.num_rows == 101
