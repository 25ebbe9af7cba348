"""The OpenAPI description and the server agree: schemathesis with all its checks."""

import os
import sys
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings

from tests.server.conftest import Running

EXAMPLES = 40


@pytest.fixture(scope="module")
def api(tiny: Running):
    return schemathesis.openapi.from_url(f"{tiny.url}/openapi.json")


schema = schemathesis.pytest.from_fixture("api")


@schema.parametrize()
@settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_the_server_is_as_described(case: schemathesis.Case) -> None:
    if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
        case.body["model"] = "tiny"
    case.call_and_validate()
