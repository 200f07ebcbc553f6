"""Runnable comparisons with peers: the same weights, inputs and settings in one run, and a ratio for each."""
