"""Every test of a week asks for `check`."""

from tests.weeks import check

__all__ = ["check"]
