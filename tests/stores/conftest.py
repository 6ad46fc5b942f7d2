"""Fixtures of the tests of object stores."""

import pytest


@pytest.fixture
def place(bucket, request):
    """A folder of the bucket for each test."""
    return f"{bucket}/{request.node.name}"
