"""`python -m jaxeff.cli` is `jaxeff`."""

import sys

from jaxeff.cli import main

sys.exit(main())
