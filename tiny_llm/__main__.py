"""`python -m tiny_llm` is `tiny-llm`."""

import sys

from tiny_llm.cli import main

sys.exit(main())
