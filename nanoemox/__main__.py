"""`python -m nanoemox`: the `nanoemox` command."""

import sys

from .cli import main

sys.exit(main())
