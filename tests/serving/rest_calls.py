"""A REST server of a small model, and calls of it."""

import contextlib
import http.client
import json

from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from fct_tf.serving import rest

PREDICT = "/v1/models/tiny:predict"


def config_of(base_path, labels: str = "") -> model_server_config_pb2.ModelServerConfig:
    text = f"""model_config_list {{
      config {{
        name: "tiny" base_path: "{base_path}" model_platform: "tensorflow"
        model_version_policy {{ specific {{ versions: 1 versions: 2 }} }} {labels}
      }}
      config {{ name: "a model" base_path: "{base_path}" model_platform: "tensorflow" }}
    }}"""
    return text_format.Parse(text, model_server_config_pb2.ModelServerConfig())


@contextlib.contextmanager
def serving(models, **options):
    server = rest.serve(models, "127.0.0.1", 0, rest.Options(**options))
    try:
        yield server.port
    finally:
        server.stop(1)


def ask(port, method, path, body=None, headers=None):
    """Status, headers and body of one request on a connection of its own."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as client:
        if isinstance(body, dict):
            body = json.dumps(body)
        client.request(method, path, body, headers or {})
        answer = client.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()


def ask_json(port, method, path, body=None, headers=None):
    status, given, content = ask(port, method, path, body, headers)
    assert given["content-type"] == "application/json"
    assert "content-encoding" not in given
    return status, json.loads(content)


def error_of(port, method, path, body=None, headers=None):
    status, content = ask_json(port, method, path, body, headers)
    assert list(content) == ["error"]
    return status, content["error"]
