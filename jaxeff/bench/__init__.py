"""Benchmarks: each compares two things within one run and reports a ratio; `jaxeff bench NAME` prints it.

Absolute times belong to a machine and an hour; the ratio of two alternating measurements survives both. Every benchmark
is a function of keyword arguments that a notebook can call, and returns the record that `--json FILE` writes.
"""
