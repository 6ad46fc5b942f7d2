"""Status, metadata, metrics and the page for a person, over REST."""

import re

import pytest

from fct_tf.serving import rest
from tests.serving.rest_calls import PREDICT, ask, ask_json, error_of, serving


def version_status(version: str, state: str = "AVAILABLE") -> dict:
    status = {"error_code": "OK", "error_message": ""}
    return {"version": version, "state": state, "status": status}


@pytest.mark.parametrize(
    ("path", "versions"),
    [
        ("/v1/models/tiny", ["2", "1"]),
        ("/v1/models/tiny/versions/1", ["1"]),
        ("/v1/models/tiny/labels/stable", ["2", "1"]),  # A label is ignored.
        ("/v1/models/a%20model", ["2"]),
    ],
)
def test_status(port, path, versions):
    expected = {"model_version_status": [version_status(version) for version in versions]}
    assert ask_json(port, "GET", path) == (200, expected)


def test_status_is_laid_out_as_by_tf_serving(port):
    _, _, body = ask(port, "GET", "/v1/models/tiny/versions/1")
    assert body.decode() == (
        '{\n "model_version_status": [\n  {\n   "version": "1",\n   "state": "AVAILABLE",\n'
        '   "status": {\n    "error_code": "OK",\n    "error_message": ""\n   }\n  }\n ]\n}\n'
    )


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/v1/models/none", "Could not find any versions of model none"),
        ("/v1/models/tiny/versions/9", "Could not find version 9 of model tiny"),
        ("/v1/models/none/metadata", "Servable not found for request: Latest(none)"),
        (
            "/v1/models/tiny/versions/9/metadata",
            "Servable not found for request: Specific(tiny, 9)",
        ),
    ],
)
def test_status_of_what_is_not_there(port, path, told):
    assert error_of(port, "GET", path) == (404, told)


@pytest.mark.parametrize(
    ("path", "version"),
    [
        ("/v1/models/tiny/metadata", "2"),
        ("/v1/models/tiny/versions/1/metadata", "1"),
        ("/v1/models/tiny/labels/stable/metadata", "1"),
        ("/v1/models/tiny/labels/stable/Metadata", "1"),
    ],
)
def test_metadata(port, path, version):
    status, content = ask_json(port, "GET", path)
    assert status == 200
    assert content["model_spec"] == {"name": "tiny", "signature_name": "", "version": version}
    signatures = content["metadata"]["signature_def"]["signature_def"]
    assert {"serving_default", "dense", "classify", "slow"} < set(signatures)
    assert signatures["serving_default"] == {
        "inputs": {
            "x": {
                "name": "x:0",
                "dtype": "DT_FLOAT",
                "tensor_shape": {"dim": [], "unknown_rank": True},
            }
        },
        "outputs": {
            "y": {
                "name": "y:0",
                "dtype": "DT_FLOAT",
                "tensor_shape": {"dim": [], "unknown_rank": True},
            }
        },
        "method_name": "tensorflow/serving/predict",
        "defaults": {},
    }
    assert signatures["text"]["inputs"]["s"]["tensor_shape"] == {
        "dim": [{"size": "-1", "name": ""}],
        "unknown_rank": False,
    }


def test_metadata_of_an_unknown_label(port):
    assert error_of(port, "GET", "/v1/models/tiny/labels/none/metadata") == (
        400,
        "Unrecognized servable version label: none",
    )


def test_metrics(models, port):
    def count(text: str) -> int:
        found = re.search(rf"^:tensorflow:serving:{re.escape(text)} (\d+)$", page(), re.M)
        return int(found[1]) if found else 0

    def page() -> str:
        status, headers, body = ask(port, "GET", rest.METRICS_PATH)
        assert (status, headers["content-type"]) == (200, "text/plain")
        return body.decode()

    counted = {
        'request_count{model_name="tiny",status="OK"}': 2,
        'request_count{model_name="tiny",status="INVALID_ARGUMENT"}': 1,
        'request_count{model_name="none",status="NOT_FOUND"}': 1,
        'request_latency_count{model_name="tiny",API="predict",entrypoint="REST"}': 2,
        'runtime_latency_count{model_name="tiny",API="Predict",runtime="TF1"}': 2,
    }
    before = {text: count(text) for text in counted}
    for body in ({"instances": [1]}, {"inputs": [1]}, "no json"):
        ask(port, "POST", PREDICT, body)
    ask(port, "POST", "/v1/models/none:predict", {"instances": [1]})
    ask(port, "GET", "/v1/models/tiny")
    assert {text: count(text) - before[text] for text in counted} == counted


def test_metrics_at_other_paths(models, port):
    status, headers, body = ask(port, "GET", f"{rest.METRICS_PATH}?a=b")
    assert (status, headers["content-type"], body.decode()) == (
        400,
        "text/plain",
        f"Unexpected path: {rest.METRICS_PATH}?a=b. Should be {rest.METRICS_PATH}",
    )
    with serving(models) as without:
        assert ask(without, "GET", rest.METRICS_PATH)[0] == 404
    with serving(models, metrics_path="/metrics") as elsewhere:
        assert ask(elsewhere, "GET", "/metrics")[0] == 200
        assert ask(elsewhere, "GET", rest.METRICS_PATH)[0] == 404


def test_the_page_for_a_person(models, port):
    ask(port, "POST", PREDICT, {"instances": [1]})
    status, headers, body = ask(port, "GET", "/")
    page = body.decode()
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    for text in ("tiny", "a model", "AVAILABLE", "stable", "p99"):
        assert text in page
    assert not re.search(r"(src|href)=|https?://|@import|url\(", page)
    assert ask(port, "HEAD", "/")[2] == b""
    assert ask(port, "POST", "/")[0] == 404
    with serving(models, status_page=False) as without:
        assert ask(without, "GET", "/")[0] == 404


def test_the_page_escapes_what_it_shows(models, port, monkeypatch):
    nasty = "<script>alert(1)</script>"
    version = {"version": 3, "state": "END", "labels": [nasty], "error": nasty}
    shown = {nasty: {"base_path": nasty, "labels": {nasty: 7}, "versions": [version]}}
    shown["empty"] = {"base_path": "/x", "labels": {}, "versions": []}
    monkeypatch.setattr(models, "models", lambda: shown)
    page = ask(port, "GET", "/")[2].decode()
    assert nasty not in page
    assert page.count("&lt;script&gt;") == 6
    assert "version 7 is not known" in page
    assert "No version has been found." in page
    monkeypatch.setattr(models, "models", dict)
    assert "No model is configured." in ask(port, "GET", "/")[2].decode()
