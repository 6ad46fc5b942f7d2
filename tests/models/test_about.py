"""The signature by which a served model says what it is."""

import json
import subprocess
import sys

import numpy as np
import pytest

from fct_tf.common.errors import InputError
from fct_tf.models import about

INFO = {
    "format": 1,
    "kind": "transformation",
    "name": "fct é",
    "space": "a" * 64,
    "distance": "l2",
    "source_space": "b" * 64,
    "dims": {"embedding": 3},
}


@pytest.mark.parametrize("rows", [1, 3])
def test_describes_each_row(rows):
    """What a batching server joins it can take apart again."""
    function, [spec] = about.endpoint(INFO)
    assert (spec.name, spec.dtype.name, spec.shape.as_list()) == ("row", "int32", [None])
    reply = function(np.zeros(rows, np.int32))["about"].numpy()
    assert reply.shape == (rows,)
    assert about.read({"about": reply}) == INFO


def test_reads_text_as_rest_gives_it():
    assert about.read({"about": np.array([json.dumps(INFO)], object)}) == INFO


@pytest.mark.parametrize(
    "reply",
    [
        {},
        {"about": np.array([], object)},
        {"about": np.array([b"{"], object)},
        {"about": np.array([b"\xff"], object)},
        {"about": np.array([1.5])},
        {"about": np.array([b"[]"], object)},
        {"about": np.array([b'{"format": 1}'], object)},
    ],
)
def test_refuses_what_is_no_description(reply):
    with pytest.raises(InputError, match="^host:1/fct: not a description"):
        about.read(reply, "host:1/fct")


def test_refuses_a_newer_format():
    reply = {"about": np.array([json.dumps(INFO | {"format": 2})], object)}
    with pytest.raises(InputError, match="has format 2.*install a newer"):
        about.read(reply)


def test_needs_no_tensorflow_to_read():
    code = "import sys, fct_tf.models.about; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
