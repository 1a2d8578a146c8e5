"""Measurements beside other ways to do the same, in turns within one run, so that a reader can repeat them.

python -m benchmarks --quick
"""
