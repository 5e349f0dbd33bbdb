"""`jaxeff env`: versions, devices and environment variables, to paste into a bug report."""

import argparse


def arguments(parser: argparse.ArgumentParser) -> None:
    """It takes nothing."""


def run(args: argparse.Namespace) -> None:
    """Does it."""
    from jaxeff.train.environment import environment

    print(environment())
