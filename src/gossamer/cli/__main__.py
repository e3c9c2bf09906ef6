"""`python -m gossamer.cli`, which torchrun starts."""

import sys

from gossamer.cli import main

if __name__ == "__main__":
    sys.exit(main())
