"""An index on the disk: broken, overwritten, written twice at once, killed while it is written."""

import os
import pickle
import shutil

import pytest

from fct_tf.ann import index, scann_files, store
from fct_tf.common import runs
from fct_tf.common.errors import InputError
from fct_tf.gallery import table
from tests import killing
from tests.ann.galleries import (
    BROKEN,
    COMPLETE,
    COUNT,
    break_file,
    check,
    copying,
    delete,
    rows_at,
    vectors_of,
)

NAMES = ["dataset.npy", "hashed_dataset.npy", "ids.arrow", "scann_config.pb", "searcher.json"]


@pytest.mark.parametrize("name", [*NAMES, "serialized_partitioner.pb", "ah_codebook.pb"])
@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_file_is_refused_by_name(root, name, how):
    path = root / "i" / "generation-1" / name
    break_file(path, how)
    with pytest.raises(InputError) as error:
        index.open_index(root / "i")
    assert str(path) in str(error.value) and "build_index --overwrite" in str(error.value)


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "no index here"),
        ("{", "not a readable JSON"),
        ("[]", "not the manifest of an index"),
        ('{"format": 3}', "install a newer fct_tf"),
        ('{"format": 2}', "broken"),
        ('{"format": 1, "generation": "../../etc", "files": {}}', "broken"),
        ('{"format": 1, "generation": "generation-1", "files": {"../x": {}}}', "broken"),
        ('{"format": 1, "generation": "generation-1", "files": {}}', "broken"),
        ('{"format": 1, "generation": "generation-1", "files": {"ids.arrow": 3}}', "broken"),
    ],
)
def test_a_broken_manifest(root, content, message):
    path = root / "i" / store.MANIFEST
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(InputError, match=message):
        index.open_index(root / "i")


def test_nothing_is_unpickled(root, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    for directory in (root / "i", root / "i" / "generation-1"):
        (directory / "scann_docids.pkl").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
        (directory / "scann_assets.pbtxt").write_text('assets { asset_path: "/etc/passwd" }')
    opened = index.open_index(root / "i")
    check(opened, table.open_gallery(root / "g.lance"))
    opened.delete(["row5"])
    assert "generation-2" in os.listdir(root / "i") and opened.num_rows == COUNT - 1
    written = os.listdir(root / "i" / "generation-2")
    assert not [name for name in written if name.endswith((".pkl", ".pbtxt"))]


def test_existing_outputs(root, tmp_path):
    path = root / "g.lance"
    with pytest.raises(InputError, match="exists already; pass `overwrite=True`"):
        index.build(path, "a", root / "i")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="holds 'letter.txt' and no index"):
        index.build(path, "a", tmp_path / "mine", overwrite=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="a file of that name"):
        index.build(path, "a", tmp_path / "file", overwrite=True)
    again = index.build(path, "a", root / "i", overwrite=True)
    assert again.manifest["generation"] == "generation-2"
    assert sorted(os.listdir(root / "i")) == ["generation-2", store.MANIFEST]


def test_two_writers(root):
    opened = index.open_index(root / "i")
    with runs.locked(root / "i", "the index"):
        for call in (
            lambda: index.build(root / "g.lance", "a", root / "i", overwrite=True),
            opened.update,
            lambda: opened.delete(["row0"]),
        ):
            with pytest.raises(InputError, match="another process is at work") as error:
                call()
            assert "\n" not in str(error.value)
    # What another writer did meanwhile counts.
    other = index.open_index(root / "i")
    other.delete(["row0"])
    opened.delete(["row1"])
    assert opened.num_rows == COUNT - 2 and other.refresh() and not other.refresh()
    assert other.num_rows == COUNT - 2


# Whatever a writer has done when it is killed, the index opens and the next writer succeeds.
@pytest.mark.parametrize("what", ["build", "overwrite", "update", "by hand"])
def test_killed_at_any_moment(root, tmp_path, what):
    delete(root / "g.lance")
    target = tmp_path / "new" if what == "build" else root / "i"
    moments = tmp_path / "moments"
    opened = None if what == "build" else index.load_index(root / "i")
    with copying(target, moments, ((os, "replace"), (os, "fsync"), (shutil, "rmtree"))):
        if opened is None or what == "overwrite":
            index.build(root / "g.lance", "a", target, COMPLETE, overwrite=True)
        elif what == "update":
            opened.update()
        else:
            opened.upsert(["row8"], vectors_of(1, seed=3))
    seen = set(rows_at(moments, is_new=what == "build"))
    assert seen == {"build": {0, COUNT - 4}, "by hand": {COUNT}}.get(what, {COUNT, COUNT - 4})
    for moment in (moments / "0", moments / str(len(os.listdir(moments)) // 2)):
        if what == "update":
            again = index.load_index(moment)
            again.update()
        else:
            again = index.build(root / "g.lance", "a", moment, COMPLETE, overwrite=True)
        check(again, table.open_gallery(root / "g.lance"))
        assert len(os.listdir(moment)) == 2


def test_a_failed_write_leaves_nothing(root, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    opened = index.open_index(root / "i")
    with monkeypatch.context() as patched:
        patched.setattr(scann_files, "save", full)
        with pytest.raises(InputError, match="cannot be written.*No space left"):
            opened.delete(["row0"])
    assert sorted(os.listdir(root / "i")) == ["generation-1", store.MANIFEST]
    assert opened.num_rows == COUNT


@pytest.mark.slow
@pytest.mark.parametrize("delay_s", [0.0, 0.05, 0.4])
def test_sigkill_in_a_build_and_an_update(root, delay_s):
    gallery, path = root / "g.lance", root / "i"
    build = ["fct_tf.build_index", f"--gallery={gallery}", "--column=a", f"--output={path}"]
    delete(gallery)
    for arguments in ([*build, "--overwrite"], [build[0], build[3], "--update"]):
        shutil.copytree(path, root / "before", dirs_exist_ok=True)
        killing.kill_when(arguments, lambda: len(os.listdir(path)) > 2, delay_s)
        assert index.load_index(path).num_rows in (COUNT, COUNT - 4)
        killing.run(arguments)
        assert index.load_index(path).num_rows == COUNT - 4
        assert len(os.listdir(path)) == 2
        shutil.rmtree(path)
        shutil.move(root / "before", path)
