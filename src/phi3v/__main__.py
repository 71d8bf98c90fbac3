"""Run the command line as ``python -m phi3v``."""

import sys

from phi3v.cli import main

if __name__ == "__main__":
    sys.exit(main())
