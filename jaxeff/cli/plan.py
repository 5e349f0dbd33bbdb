"""`jaxeff plan`: whether an experiment fits on a TPU that need not be there, how fast it is, and where the time goes."""

import argparse
import json
import math
import sys

from jaxeff.cli.arguments import folder


def arguments(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    parser.add_argument(
        "experiments",
        nargs="+",
        metavar="CONFIG",
        help="Python files with config() -> Experiment; several are compared",
    )
    parser.add_argument(
        "--topology",
        required=True,
        metavar="KIND:GRID",
        help="such as v5e:4x4, v5p:2x2x1, v6e:8x8, or slices 2xv5e:4x4",
    )
    parser.add_argument(
        "--step", choices=("train", "prefill", "decode"), default="train", help="what is planned (default train)"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="PATH=VALUE", help="change a field: model.remat=dots"
    )
    parser.add_argument(
        "--sweep", choices=("mesh", "topology"), help="compare meshes; or topologies, listed with commas"
    )
    parser.add_argument("--price", type=_positive, metavar="P", help="of a chip for an hour: what the whole run costs")
    parser.add_argument(
        "--watts", type=_positive, metavar="W", help="of a chip and its share of the host: kWh of the whole run"
    )
    parser.add_argument("--html", type=folder, metavar="FILE", help="write it as a page, too")
    parser.add_argument("--json", type=folder, metavar="FILE", help="write everything that is known, too")
    parser.add_argument(
        "--fail-on-unasked", action="store_true", help="exit with status 1 where a communication is unasked"
    )


def run(args: argparse.Namespace) -> int | None:
    """Does it."""
    from jaxeff.core.files import write_text
    from jaxeff.plan.estimate import Estimate
    from jaxeff.plan.page import page
    from jaxeff.plan.table import comparison, text, whole_run

    found = list(_estimates(args))
    known = [(name, e, steps) for name, e, steps in found if isinstance(e, Estimate)]
    if len(found) > 1:
        print(comparison([(name, e) for name, e, _ in found]) + "\n")
    for _, e, steps in known if args.sweep is None else known[:1]:
        print(text(e, steps, args.price, args.watts) + "\n")
    if args.html is not None:
        told = lambda e: isinstance(e, Estimate) and e.fits and e.kind == "train"  # noqa: E731
        about = [whole_run(e, steps, args.price, args.watts) if told(e) else "" for _, e, steps in found]
        write_text(
            args.html, page(f"Plan: {' and '.join(args.experiments)}", [(name, e) for name, e, _ in found], about)
        )
        print(args.html)
    if args.json is not None:
        whole = [{"name": name} | (e.json() if isinstance(e, Estimate) else {"error": e}) for name, e, _ in found]
        write_text(args.json, json.dumps(whole, indent=1))
        print(args.json)
    unasked = [row for _, e, _ in known for row in e.sent if not row["asked"]]
    return 1 if args.fail_on_unasked and unasked else None


def _estimates(args: argparse.Namespace):
    """(name, Estimate or why there is none, steps of the run) of all that is asked for."""
    from jaxeff.core.errors import UserError
    from jaxeff.plan import search
    from jaxeff.train.config_file import load
    from jaxeff.train.overrides import override

    experiments = [(name, override(load(name), args.set)) for name in args.experiments]
    topologies = args.topology.split(",")
    if len(topologies) > 1 and args.sweep != "topology":
        raise UserError("several topologies are compared by --sweep topology")
    if args.sweep == "mesh":
        for name, experiment in experiments:
            for shape, e in search.sweep(search.meshes(experiment, topologies[0]), topologies[0], args.step, _tell):
                yield (f"{name} {shape}" if len(experiments) > 1 else shape), e, experiment.train.steps
        return
    for name, experiment in experiments:
        for topology in topologies:
            title = " ".join([name] * (len(experiments) > 1) + [topology] * (len(topologies) > 1)) or name
            _tell(f"compiling {title}")
            yield from _fitting(title, experiment, topology, args.step)


def _fitting(title: str, experiment, topology: str, kind):
    from jaxeff.plan.search import fitting

    found, change, other = fitting(experiment, topology, kind, _tell)
    yield title, found, experiment.train.steps
    if other is not None:
        yield f"{title} --set {' --set '.join(change.split())}", other, experiment.train.steps


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _positive(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not 0 < found < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0, found {text!r}")
    return found
