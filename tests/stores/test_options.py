"""What opens stores, who gets it, and what is told where they cannot be opened."""

import json
import os
import pickle
import re

import numpy as np
import pytest

from fct_tf import Gallery, embed_gallery, evaluate, inspect_gallery, upgrade_gallery
from fct_tf.common import leases, objects, stores
from fct_tf.common.errors import InputError
from tests import buckets
from tests.upgrade.test_upgrade import make_gallery


@pytest.fixture(scope="module")
def server():
    with buckets.served() as server:
        with buckets.opened(server):
            make_gallery(f"{server.bucket('gallery-bucket')}/g.lance")
        yield server


@pytest.fixture(autouse=True)
def nothing_given(monkeypatch):
    """No options but those of the test."""
    buckets.forget_stores(monkeypatch)


URI = "s3://gallery-bucket/g.lance"
NOWHERE = {"aws_endpoint": "http://127.0.0.1:9", "client_max_retries": "0"}


@pytest.mark.parametrize(
    "way", ["file", "file in the environment", "environment", "Python", "dict"]
)
def test_where_options_come_from(server, tmp_path, monkeypatch, run_door, capsys, way):
    file = server.write_options(tmp_path / "options.json", allow_http=True)
    flags = []
    if way == "file":
        flags = [f"--storage_options={file}"]
    elif way == "file in the environment":
        monkeypatch.setenv("FCT_TF_STORAGE_OPTIONS", str(file))
    elif way == "environment":
        for name, value in server.options.items():
            monkeypatch.setenv(f"AWS_{name.removeprefix('aws_')}".upper(), value)
    else:
        given = server.options if way == "dict" else file
        assert Gallery.open(URI, storage_options=given).num_rows == 101
    assert run_door(inspect_gallery, f"--gallery={URI}", "--tag=live", *flags) == 0
    assert objects.read(f"{URI}/_refs/tags/live.json")
    captured = capsys.readouterr()
    assert "101 rows" in captured.out
    assert buckets.SECRET not in captured.out + captured.err


def test_each_bucket_may_have_its_own(server):
    with buckets.opened(server):
        make_gallery(f"{server.bucket('other-bucket')}/h.lance", num_rows=7)
    stores.use({**server.options, **NOWHERE})
    with pytest.raises(InputError, match="cannot be reached"):
        objects.listed("s3://other-bucket")
    beside = Gallery.open("s3://other-bucket/h.lance", storage_options=server.options)
    assert beside.num_rows == 7 and objects.listed("s3://other-bucket/h.lance")
    with pytest.raises(InputError, match="cannot be reached"):
        objects.listed("s3://gallery-bucket")


def test_workers_get_what_the_driver_has(server, monkeypatch, tmp_path):
    monkeypatch.setenv("FCT_TF_STORAGE_OPTIONS", str(server.write_options(tmp_path / "o.json")))
    monkeypatch.setenv("AWS_REGION", "eu-west-7")
    told = pickle.loads(pickle.dumps(stores.carried()))
    monkeypatch.delenv("FCT_TF_STORAGE_OPTIONS")
    monkeypatch.delenv("AWS_REGION")
    monkeypatch.setattr(stores, "_given", {})
    stores.carry(told)
    monkeypatch.setenv("AWS_REGION", os.environ["AWS_REGION"])  # Undone at the end of the test.
    assert (stores.options(URI), os.environ["AWS_REGION"]) == (server.options, "eu-west-7")


def fails(run_door, capsys, module, *flags):
    """The one line that a command ends with."""
    assert run_door(module, *flags) == 2
    captured = capsys.readouterr()
    lines = [one for one in captured.err.splitlines() if one.startswith("error: ")]
    assert len(lines) == 1 and captured.err.endswith(lines[0] + "\n")
    assert buckets.SECRET not in captured.out + captured.err
    assert "Traceback" not in captured.err and ".rs:" not in captured.err
    return lines[0]


WRONG = [
    ("s3://no-such-bucket/g.lance", {}, "no-such-bucket.*no such bucket; make it, or correct"),
    (URI, {"allow_http": "false"}, "endpoint is http://, which is refused.*allow_http"),
    (URI, NOWHERE, "cannot be reached; check the network and the endpoint"),
    ("s3://gallery-bucket/none.lance", {}, r"none.lance: no gallery \(Lance dataset\) here"),
    ("s4://gallery-bucket/g.lance", {}, "no store is known by such a name; s3://, gs:// and az://"),
    # Lance would read another table.
    (f"{URI}#copy", {}, "has '#' in the path, which a store may read as another path"),
    (f"{URI}?x", {}, r"has '\?' in the path"),
    ("s3://gallery-bucket/g%20.lance", {}, "has '%' in the path"),
    ("s3:/gallery-bucket/g.lance", {}, "write s3://, and as a text"),
    (URI, {"aws_endpoint": "notaurl"}, "aws_endpoint=notaurl: is no address; write http://HOST"),
]


@pytest.mark.parametrize(("uri", "changed", "told"), WRONG)
def test_what_is_wrong_is_told_in_a_line(server, tmp_path, run_door, capsys, uri, changed, told):
    options = server.write_options(tmp_path / "options.json", **changed)
    flags = (f"--gallery={uri}", f"--storage_options={options}")
    line = fails(run_door, capsys, inspect_gallery, *flags)
    assert re.search(told, line)
    # The same of what is written, and of a model.
    vectors = tmp_path / "v.npy"
    np.save(vectors, np.ones((3, 2), np.float32))
    if "none.lance" not in uri:
        from fct_tf import import_gallery

        more = (f"--embeddings={vectors}", "--model_name=m", "--column=c")
        assert re.search(told, fails(run_door, capsys, import_gallery, *flags, *more))
        more = (f"--transformation={uri}", "--column=x", f"--storage_options={options}")
        local = make_gallery(tmp_path / "g.lance", num_rows=3)
        line = fails(run_door, capsys, upgrade_gallery, f"--gallery={local}", *more)
        assert re.search(told, line)


def test_credentials_that_are_refused(server, tmp_path, run_door, capsys):
    options = server.write_options(tmp_path / "options.json")
    flags = (f"--gallery={URI}", f"--storage_options={options}")
    with server.checking_credentials():
        line = fails(run_door, capsys, inspect_gallery, *flags)
        assert re.search(r"the store refuses the credentials \(\w+.*\); check them", line)
        told = "the store refuses the credentials .InvalidAccessKeyId"
        with pytest.raises(InputError, match=told), leases.held("s3://gallery-bucket/lock", "it"):
            pass


def test_no_credentials_at_all(server, tmp_path, run_door, capsys):
    without = {k: v for k, v in server.options.items() if "key" not in k}
    (tmp_path / "o.json").write_text(json.dumps(without))
    flags = (f"--gallery={URI}", f"--storage_options={tmp_path}/o.json")
    line = fails(run_door, capsys, inspect_gallery, *flags)
    assert "no credentials are found; set AWS_ACCESS_KEY_ID" in line


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (json.dumps({"aws_secret_access_key": buckets.SECRET}), "the name of a JSON file, not the"),
        ("nowhere.json", "nowhere.json: no such file"),
        ("list.json", "list.json: must be one JSON object of names and texts"),
        ("nested.json", "nested.json: aws_region: must be the name of a region.*not an object"),
        ("broken.json", "broken.json: not a readable JSON file"),
        ("misspelt.json", "aws_secret_acess_key: no store .*; did you mean aws_secret_access_key"),
    ],
)
def test_options_that_are_none(server, tmp_path, monkeypatch, run_door, capsys, given, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "nested.json").write_text('{"aws_region": {"secret": "x"}}')
    (tmp_path / "broken.json").write_text('{"aws_secret_access_key": ')
    misspelt = server.options
    misspelt["aws_secret_acess_key"] = misspelt.pop("aws_secret_access_key")
    (tmp_path / "misspelt.json").write_text(json.dumps(misspelt))
    flags = (f"--gallery={URI}", f"--storage_options={given}")
    line = fails(run_door, capsys, inspect_gallery, *flags)
    assert re.search(told, line)


@pytest.mark.parametrize("slash", ["", "/re/st"])
def test_credentials_in_a_path_are_refused(server, run_door, capsys, tmp_path, slash):
    # Half of all secrets have a slash.
    path = f"s3://{buckets.KEY_ID}:secret-of-a-path{slash}@gallery-bucket/g.lance"
    for module, *more in (
        (inspect_gallery,),
        (evaluate, "--gallery_column=a", "--query_column=a", f"--output={tmp_path}/r.json"),
        (
            embed_gallery,
            "--images=glyphs:val",
            f"--model=s3://u:secret-of-a-path{slash}@x/m",
            "--column=c",
        ),
    ):
        line = fails(run_door, capsys, module, f"--gallery={path}", *more)
        assert "secret-of-a-path" not in line and "re/st" not in line and "***" in line
        assert "credentials in the path" in line


def test_secrets_are_struck_out(server, monkeypatch):
    stores.use({**server.options, "azure_storage_sas_key": "short"})
    monkeypatch.setenv("AWS_SESSION_TOKEN", "a-token-of-this-session")
    told = f"{buckets.SECRET}, a-token-of-this-session, short, s3://me:mine@x/y, {server.endpoint}"
    assert stores.masked(told) == f"***, ***, short, s3://***@x/y, {server.endpoint}"


@pytest.mark.parametrize(
    "module_and_flags",
    [
        ("build_index", "--gallery={uri} --column=embedding_old --output=s3://gallery-bucket/index"),
        ("evaluate", "--gallery={uri} --gallery_column=embedding_old --query_column=embedding_old "
                     "--output=s3://gallery-bucket/r.json"),
        ("train_transformation", "--gallery={uri} --method=affine --source=embedding_old "
                                 "--target=side_info --workdir=s3://gallery-bucket/run"),
    ],
)  # fmt: skip
def test_what_is_written_on_disks_alone(
    server, monkeypatch, tmp_path, run_door, capsys, module_and_flags
):
    import importlib

    monkeypatch.chdir(tmp_path)
    with buckets.opened(server):
        name, flags = module_and_flags
        module = importlib.import_module(f"fct_tf.{name}")
        line = fails(run_door, capsys, module, *flags.format(uri=URI).split())
        assert "lies in an object store" in line and "on this machine" in line
    assert not [*tmp_path.iterdir()]


def test_a_bucket_is_no_gallery(server, tmp_path, run_door, capsys):
    options = server.write_options(tmp_path / "options.json")
    np.save(tmp_path / "v.npy", np.ones((3, 2), np.float32))
    from fct_tf import import_gallery

    flags = ("--gallery=s3://gallery-bucket", f"--storage_options={options}")
    more = (f"--embeddings={tmp_path / 'v.npy'}", "--model_name=m", "--column=c")
    line = fails(run_door, capsys, import_gallery, *flags, *more)
    assert "name a path in the bucket, s3://gallery-bucket/NAME" in line


@pytest.mark.parametrize("given", [5, [], True, b"x", {1: "x"}, "", {"aws_endpoint": "5"}])
def test_options_of_other_types(given):
    with pytest.raises(InputError):
        Gallery.open(URI, storage_options=given)
