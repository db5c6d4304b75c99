"""``python -m spike_kit`` is the command ``spike-kit``."""

import sys

from spike_kit.cli import main

if __name__ == "__main__":
    sys.exit(main())
