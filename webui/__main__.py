"""`python -m webui`."""

import tyro

from webui.app import main

if __name__ == "__main__":
    tyro.cli(main, prog="python -m webui")
