"""`jaxeff`: a thin layer over functions that a notebook can call too.

Exit status: 0 when done (or stopped by a signal, and saved), 2 when the user can put it right (one line on stderr), and
whatever Python says, with a traceback, when the fault is ours.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence

from jaxeff.core.errors import UserError


class Parser(argparse.ArgumentParser):
    """One that says in one line what is wrong; the parsers of its subcommands are of its kind."""

    def error(self, message: str):
        """Ends the process."""
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}; see {self.prog} --help\n")


def parser() -> Parser:
    """The command line."""
    top = Parser(prog="jaxeff", description="Efficient language models: train, evaluate, generate, compare.")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)

    train = commands.add_parser("train", help="train a config, or go on where it was interrupted")
    train.add_argument("config", metavar="CONFIG", help="a Python file with config() -> Experiment")
    train.add_argument(
        "--set", action="append", default=[], metavar="PATH=VALUE", help="change a field: train.steps=100"
    )
    train.add_argument("--base", metavar="DIR", help="the run whose weights it starts from, as --set base=DIR")
    _workdir(train)

    evaluate = commands.add_parser("eval", help="loss, perplexity and bits per byte of a trained model")
    evaluate.add_argument("--split", default="validation", help="train, validation (default) or test")
    _any_base(evaluate)
    _config(evaluate)
    _workdir(evaluate)

    generate = commands.add_parser("generate", help="sample text from a trained model")
    generate.add_argument("--prompt", default="", help="the text to go on from (default: the start of a document)")
    generate.add_argument("--max-tokens", type=int, default=100)
    generate.add_argument("--temperature", type=float, default=0.0, help="0 (default) is greedy")
    generate.add_argument("--top-k", type=int)
    generate.add_argument("--top-p", type=float)
    generate.add_argument("--min-p", type=float)
    generate.add_argument("--seed", type=int, default=0)
    _any_base(generate)
    _config(generate)
    _workdirs(generate, "folder of a run; several: one answer each, by their adapters on one base")

    transform = commands.add_parser("transform", help="a run whose weights are those of another, transformed")
    transform.add_argument("--apply", required=True, metavar="TRANSFORMS", help="such as 'LowRank(energy=0.9), Int8()'")
    transform.add_argument("--calibrate", type=int, default=0, metavar="N", help="look at N rows of text first")
    _out(transform)
    _config(transform)
    _workdir(transform)

    merge = commands.add_parser("merge", help="a run with the weights of others as plain arrays, adapters merged")
    merge.add_argument("--by", metavar="METHOD", help="joins several: soup, slerp, ties, dare or task_arithmetic")
    merge.add_argument("--base", metavar="DIR", help="the run that the others learned from, for the last three")
    merge.add_argument(
        "--scales", metavar="X,Y,...", help="a number for each run; slerp: share of the second; ties: density, scale"
    )
    merge.add_argument("--seed", type=int, default=0, help="of what dare leaves out")
    _out(merge)
    _config(merge)
    _workdirs(merge, "folder of a run; may be repeated")

    ablate = commands.add_parser("ablate", help="compare models at equal size, with seeds and intervals")
    ablate.add_argument("config", metavar="CONFIG", help="a Python file with ablation() -> Ablation")
    ablate.add_argument("--only", metavar="NAME", help="one model of the ablation")
    _workdir(ablate)

    record = commands.add_parser("record", help="keep an ablation's results: a README with its table, and its plots")
    record.add_argument("folder", metavar="FOLDER", help="where README.md goes: experiments/TOPIC")
    _workdir(record)

    bench = commands.add_parser("bench", help="measure ourselves; `jaxeff bench` lists what", add_help=False)
    bench.add_argument("arguments", nargs=argparse.REMAINDER, metavar="NAME ...")
    return top


def _workdir(command: argparse.ArgumentParser):
    command.add_argument("--workdir", required=True, metavar="DIR", help="folder of the run")


def _workdirs(command: argparse.ArgumentParser, what: str):
    command.add_argument("--workdir", required=True, action="append", metavar="DIR", help=what)


def _any_base(command: argparse.ArgumentParser):
    command.add_argument(
        "--any-base", action="store_true", help="take frozen weights as they are, even if training saw others"
    )


def _out(command: argparse.ArgumentParser):
    command.add_argument("--out", required=True, metavar="DIR", help="folder of the new run")


def _config(command: argparse.ArgumentParser):
    command.add_argument(
        "--config", metavar="CONFIG", help="the run's config file, where it defines classes of its own"
    )


def _define(config: str | None) -> None:
    """Makes the classes of a config file known; nothing that a workdir holds is ever run."""
    if config is not None:
        from jaxeff.train.config_file import load

        load(config)


# What the weights of an objective's sums count, where a person wants to know.
UNITS = {"loss": "targets", "bits": "bytes"}


# Each command imports what it needs: `jaxeff --help` does not wait for JAX.


def train(args: argparse.Namespace) -> None:
    """`jaxeff train`."""
    from jaxeff.train.config_file import load
    from jaxeff.train.loop import fit
    from jaxeff.train.overrides import override
    from jaxeff.train.progress import shown
    from jaxeff.train.signals import on_signal

    base = [] if args.base is None else [f"base={args.base}"]
    experiment = override(load(args.config), [*args.set, *base])
    with on_signal() as stop, shown() as report:
        result = fit(experiment, args.workdir, report=report, stop=stop)
    if result.stopped:
        again = shlex.join(["jaxeff", *sys.argv[1:]])
        print(f"stopped and saved at step {result.step} of {experiment.train.steps}; to go on: {again}", flush=True)
        return
    score = "" if result.score is None else f": validation {experiment.objective.score.describe(result.score)}"
    print(f"trained {result.step} steps in {args.workdir}{score}")


def evaluate(args: argparse.Namespace) -> None:
    """`jaxeff eval`."""
    from jaxeff.evaluate.scores import evaluate
    from jaxeff.train.progress import shown
    from jaxeff.train.trained import load_trained

    _define(args.config)
    with shown() as report:
        run = load_trained(args.workdir, report, args.any_base)
        e = run.experiment
        found = evaluate(
            e.objective, e.model, run.weights, run.prepared.eval(args.split), policy=e.policy, report=report.stage
        )
    scores = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in found.scores.items())
    weights = ", ".join(f"{found.sums[name].weight:,.0f} {unit}" for name, unit in UNITS.items() if name in found.sums)
    print(f"{args.split} at step {run.step}: {scores} ({weights})")


def generate(args: argparse.Namespace) -> None:
    """`jaxeff generate`."""
    import jax
    import numpy as np

    from jaxeff.models.generate import generate
    from jaxeff.train.progress import Silent
    from jaxeff.train.trained import load_adapters, load_trained
    from jaxeff.transforms.multi_lora import choose

    if any("\ud800" <= character <= "\udfff" for character in args.prompt):
        raise UserError("the prompt is not UTF-8")
    _define(args.config)
    if len(args.workdir) == 1:
        run = load_trained(args.workdir[0], Silent(), args.any_base)
        weights = run.weights
    else:
        run = load_adapters(args.workdir, Silent(), args.any_base)
        weights = choose(run.weights, np.arange(len(args.workdir)))
    tokenizer = run.prepared.tokenizer
    ids = [tokenizer.bos_id, *tokenizer.encode(args.prompt)]
    tokens_BN = generate(
        run.experiment.model,
        weights,
        np.asarray([ids] * len(args.workdir), np.int32),
        args.max_tokens,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        min_p=args.min_p,
        key=jax.random.key(args.seed),
        eos=tokenizer.eos_id,
        policy=run.experiment.policy,
    )
    for workdir, tokens_N in zip(args.workdir, np.asarray(tokens_BN), strict=True):
        new = tokens_N.tolist()
        new = new[: new.index(tokenizer.eos_id)] if tokenizer.eos_id in new else new
        if len(args.workdir) > 1:
            print(f"{workdir}:")
        print(args.prompt + tokenizer.decode(ids + new)[len(tokenizer.decode(ids)) :])


def transform(args: argparse.Namespace) -> None:
    """`jaxeff transform`."""
    from jaxeff.train.overrides import transforms
    from jaxeff.train.progress import shown
    from jaxeff.train.rewrite import transform

    _define(args.config)
    chosen = transforms(args.apply)
    with shown() as report:
        found = transform(args.workdir, chosen, args.out, calibrate=args.calibrate, report=report)
    _before_and_after(*found, args.out)


def merge(args: argparse.Namespace) -> None:
    """`jaxeff merge`."""
    from jaxeff.train.progress import shown
    from jaxeff.train.rewrite import joined, merge

    _define(args.config)
    scales = _numbers(args.scales)
    with shown() as report:
        join = joined(args.by, len(args.workdir), args.base, scales, args.seed, report)
        found = merge(args.workdir, args.out, join, report)
    _before_and_after(*found, args.out)


def _numbers(text: str | None) -> list[float] | None:
    try:
        return None if text is None else [float(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--scales {text}: expected numbers, such as 0.5,0.5") from None


def _before_and_after(before, after, experiment, out: str) -> None:
    """Prints the table of two models."""
    score = experiment.objective.score

    def row(name: str, what: str, form) -> str:
        return f"{name:<24}" + "".join(f"{form(getattr(m, what)):>16}" for m in (before, after))

    print(f"{'':<24}{'before':>16}{'after':>16}")
    for name, what in (("parameters", "parameters"), ("trained", "trained"), ("bytes", "bytes")):
        print(row(name, what, "{:,}".format))
    print(row("bits per weight", "bits", "{:.2f}".format))
    print(row(f"validation {score.name.replace('_', ' ')}", "score", lambda x: "-" if x is None else f"{x:.4f}"))
    print(row("decoding, ms a token", "decode", lambda s: f"{1000 * s:.3f}"))
    print(f"written to {out}")


def ablate(args: argparse.Namespace) -> None:
    """`jaxeff ablate`."""
    from jaxeff.lab.command import ablate

    ablate(args.config, args.workdir, args.only)


def record(args: argparse.Namespace) -> None:
    """`jaxeff record`."""
    from jaxeff.lab.record import record

    print(record(args.workdir, args.folder))


def bench(args: argparse.Namespace) -> None:
    """`jaxeff bench`."""
    from jaxeff.bench import registry

    inner = Parser(prog="jaxeff bench")
    registry.add_arguments(inner)
    options = vars(inner.parse_args(args.arguments))
    registry.run(options.pop("benchmark"), options.pop("json", None), **options)


COMMANDS = {
    "train": train,
    "eval": evaluate,
    "generate": generate,
    "transform": transform,
    "merge": merge,
    "ablate": ablate,
    "record": record,
    "bench": bench,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    args = parser().parse_args(argv)
    try:
        COMMANDS[args.command](args)
        sys.stdout.flush()
    except UserError as error:
        return _refuse(str(error))
    except BrokenPipeError:
        # The reader of our output went away (`jaxeff eval ... | head`): nothing to say, and nobody to say it to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        # The file system's refusals are no bug of ours, wherever they strike.
        from jaxeff.core.files import refusal

        reason = refusal(error)
        if reason is None:
            raise
        return _refuse(f"{error.filename}: {reason}" if error.filename else reason)
    return 0


def _refuse(text: str) -> int:
    print("jaxeff: error: " + " ".join(text.split()), file=sys.stderr, flush=True)
    return 2


if __name__ == "__main__":
    sys.exit(main())
