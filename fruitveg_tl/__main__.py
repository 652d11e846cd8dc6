"""`python -m fruitveg_tl`: see `cli`."""

import sys

from fruitveg_tl.cli import main

sys.exit(main())
