"""The command line, as in its own tests."""

from tests.cli.conftest import own_state, run  # noqa: F401
