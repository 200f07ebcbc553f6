"""Thin runnable entry points: `python -m train_scripts.NAME --help`."""
