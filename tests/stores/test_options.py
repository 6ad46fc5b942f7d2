"""What opens stores, who gets it, and what is told where they cannot be opened."""

import ast
import importlib
import json
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from absl import flags

from fct_tf import Gallery, embed_gallery, evaluate, inspect_gallery, upgrade_gallery
from fct_tf.common import cli, flag_groups, leases, objects, stores
from fct_tf.common.errors import InputError
from tests import buckets
from tests.conftest import ROOT
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


@pytest.mark.parametrize(
    ("given", "told"),
    [
        # Names that are near to those of all stores.
        ({"aws_regoin": "x"}, "aws_regoin: no store has such an option; did you mean aws_region?"),
        ({"aws_acces_key_id": "x"}, "did you mean aws_access_key_id?"),
        ({"AWS_ENDPONT": "http://x"}, "AWS_ENDPONT: .*did you mean aws_endpoint?"),
        ({"secret_access_keys": "x"}, "did you mean secret_access_key?"),
        ({"google_service_acount": "x"}, "did you mean google_service_account?"),
        ({"azure_storage_acount_name": "x"}, "did you mean azure_storage_account_name?"),
        ({"alow_http": "true"}, "did you mean allow_http?"),
        ({"request_timeouts": "5s"}, "did you mean"),
        ({"client_max_retry": 1}, "did you mean client_max_retries?"),
        ({"endpoint-url": "x"}, "did you mean"),
        # Values that are not of the kind.
        ({"allow_http": "maybe"}, "allow_http: must be true or false, not maybe"),
        ({"aws_skip_signature": "5"}, "aws_skip_signature: must be true or false, not 5"),
        ({"timeout": "soon"}, "timeout: must be a time such as 30s or 2m, not soon"),
        ({"connect_timeout": "5"}, "connect_timeout: must be a time such as 30s or 2m, not 5"),
        ({"timeout": True}, "timeout: must be a time such as 30s or 2m, not true"),
        ({"client_max_retries": "many"}, "client_max_retries: must be a whole number, not many"),
        ({"client_max_retries": -1}, "client_max_retries: must be a whole number, not -1"),
        ({"client_retry_timeout": "45s"}, "must be a whole number of seconds, not 45s"),
        ({"aws_region": "us east"}, "aws_region: must be the name of a region"),
        ({"aws_region": None}, "aws_region: must be the name of a region, .*, not null"),
        ({"aws_access_key_id": ["x"]}, "aws_access_key_id: must be a text, not a list"),
        ({"aws_secret_access_key": True}, "aws_secret_access_key: must be a text, not true"),
        ({"aws_endpoint": {"x": buckets.SECRET}}, "aws_endpoint: must be a text, not an object"),
        # Secrets where they do not belong are not shown.
        ({"AKIATHISISNOTWRITTEN": buckets.SECRET}, "name 1: no store has such an option"),
        ({buckets.SECRET: "x"}, "name 1: no store has such an option"),
        ({"timeout": buckets.SECRET}, "timeout: must be a time .*, not what is there"),
        ({"aws_region": buckets.SECRET}, "aws_region: must be the name .*, not what is there"),
        ({"aws_endpoint": f"http://{buckets.KEY_ID}:{buckets.SECRET}@h x"}, "is no address"),
        ({"aws_endpoint": buckets.SECRET}, "is no address"),
        ([("aws_secret_access_key", buckets.SECRET)], "a dict or the name .*, not list"),
        (buckets.SECRET.encode(), "a dict or the name of a JSON file, not bytes"),
        (f"aws_secret_access_key={buckets.SECRET}", "the name of a JSON file, not the options"),
        (f"aws_secret_access_key: {buckets.SECRET}", "the name of a JSON file, not the options"),
        (f"aws_access_key_id=x,token={buckets.SECRET}", "the name of a JSON file, not the options"),
    ],
)  # fmt: skip
def test_wrong_options_are_named_and_secrets_are_not(given, told):
    with pytest.raises(InputError, match=told) as raised:
        Gallery.open(URI, storage_options=given)
    line = str(raised.value)
    assert not [one for one in (buckets.SECRET, buckets.KEY_ID) if one in line]
    assert "try again" not in line and "\n" not in line


def test_the_options_are_those_of_the_library():
    """Each is known to the store that it is of; each of the library's own is known here."""
    import obstore
    from obstore.store import from_url

    from fct_tf.common import store_options

    for scheme in ("s3", "gs", "az"):
        for name in store_options.OF_STORE[scheme]:
            value = "true" if store_options._is_switch(name) else "1"
            try:
                from_url(f"{scheme}://bucket", config={name: value})
            except obstore.exceptions.UnknownConfigurationKeyError as error:
                pytest.fail(str(error))
            except obstore.exceptions.BaseError:
                pass  # The value.
    stubs = Path(obstore.__file__).parent / "_store"
    for file, kind in (("_aws", "S3Config"), ("_gcs", "GCSConfig"), ("_azure", "AzureConfig")):
        tree = ast.parse((stubs / f"{file}.pyi").read_text())
        config = next(one for one in tree.body if getattr(one, "name", "") == kind)
        names = {one.target.id for one in config.body if isinstance(one, ast.AnnAssign)}
        assert len(names) > 5
        # The one is taken as aws_endpoint; the other is in the library's stubs alone.
        assert not names - store_options.KNOWN - {"aws_endpoint_url_s3", "sts_endpoint"}


def test_one_file_for_several_stores(server):
    """What is of another store, or of Lance alone, is not in the way."""
    more = {"google_service_account": "/nowhere", "azure_storage_account_name": "me"}
    more |= {"oss_endpoint": "https://x", "block_size": 65536, "download_retry_count": 2}
    opened = Gallery.open(URI, storage_options={**server.options, **more})
    assert opened.num_rows == 101 and objects.listed(URI)
    renamed = {**server.options, "aws_endpoint_url_s3": server.endpoint, "aws_timeout": "9s"}
    del renamed["aws_endpoint"]
    assert Gallery.open(URI, storage_options=renamed).num_rows == 101
    assert stores.options(URI)["timeout"] == "9s"


# What names no file in a bucket.
BARE = {
    "s3://": "names no bucket; write s3://BUCKET/NAME",
    "s3:///x": "names no bucket; write s3://BUCKET/NAME",
    "gs://": "names no bucket; write gs://BUCKET/NAME",
    "s3://some-bucket": "is a bucket; name a path in the bucket, s3://some-bucket/NAME",
    "s3://some-bucket/": "is a bucket; name a path in the bucket, s3://some-bucket/NAME",
    "az://some-bucket//": "is a bucket; name a path in the bucket, az://some-bucket/NAME",
    "s3://some-bucket@7": "is a bucket; name a path in the bucket, s3://some-bucket/NAME",
    "s3://some-bucket/@live": "is a bucket; name a path in the bucket, s3://some-bucket/NAME",
}


def commands_with_stores():
    """Command -> those of its flags that take a text, and a value for each that is required."""
    found = {}
    for path in sorted((ROOT / "fct_tf").glob("*.py")):
        if "define_stores(" not in path.read_text():
            continue
        module = importlib.import_module(f"fct_tf.{path.stem}")
        values = flags.FlagValues()
        cli._argv[:] = [path.stem]
        module.define_flags(values)
        texts, required = [], {}
        for flag in (one for defined in flag_groups.of(values).values() for one in defined):
            multiple = isinstance(flag, flags.MultiFlag)
            kind = type(flag.parser).__name__
            if kind in ("ArgumentParser", "ListParser") and flag.name != "storage_options":
                texts.append(flag.name)
            if any("must have a value" in one.message for one in flag.validators):
                required[flag.name] = "x" if kind == "ArgumentParser" or multiple else "1"
            if flag.name == "config":
                required[flag.name] = str(ROOT / "configs" / "quickstart.py")
        found[path.stem] = module, texts, required
    return found


COMMANDS = commands_with_stores()


@pytest.mark.parametrize("command", COMMANDS)
def test_bare_addresses_are_refused(run_door, capsys, tmp_path, monkeypatch, command):
    """In every flag that could be one, of every command that opens stores."""
    monkeypatch.chdir(tmp_path)
    module, texts, required = COMMANDS[command]
    addresses = list(BARE.items())
    for number, name in enumerate(texts):
        for address, told in addresses if number == 0 else [addresses[number % len(addresses)]]:
            given = {**required, name: address}
            line = fails(run_door, capsys, module, *(f"--{k}={v}" for k, v in given.items()))
            assert line.startswith(f"error: --{name}={address}: {told}"), line
    assert not [*tmp_path.iterdir()]


def test_commands_with_stores_are_found():
    assert {"export_serving", "upgrade_gallery", "evaluate", "verdict"} <= {*COMMANDS}
    assert "output" in COMMANDS["export_serving"][1] and "gallery" in COMMANDS["remove_rows"][1]


@pytest.mark.parametrize(
    "address", ["s3://", "s3:///x", "s3://gallery-bucket", "s3://gallery-bucket/"]
)
def test_bare_addresses_in_python(server, address, tmp_path):
    from fct_tf.common import copies

    told = "names no bucket|name a path in the bucket"
    with buckets.opened(server):
        for call in (
            lambda: Gallery.open(address),
            lambda: make_gallery(address, num_rows=3),
            lambda: objects.write(address, b"x"),
            lambda: copies.made_dir(address, "model.json").__enter__(),
            lambda: leases.held(address, "it").__enter__(),
        ):
            with pytest.raises(InputError, match=told):
                call()
