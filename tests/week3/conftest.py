"""Every test of a week asks for `check`; one of a kernel runs it with a cache of compiled ones."""

from tests.kernels.conftest import kernel_cache
from tests.weeks import check

__all__ = ["check", "kernel_cache"]
