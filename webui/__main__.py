"""`python -m webui`."""

import sys

import tyro

from webui.app import Flags, main

if __name__ == "__main__":
    sys.exit(main(tyro.cli(Flags, prog="python -m webui")))
