"""`jaxeff`: a thin layer over functions that a notebook can call too.

A UserError is one line on stderr and exit code 2; any other error keeps its traceback.
"""

import argparse
import json
import sys
from collections.abc import Sequence

from jaxeff.core.errors import UserError


def train(args) -> None:
    """Train a config in a workdir; the same command goes on after an interruption."""
    from jaxeff.train.experiment import load
    from jaxeff.train.loop import fit, on_signal
    from jaxeff.train.overrides import override
    from jaxeff.train.progress import shown

    experiment = override(load(args.config), args.set)
    with shown() as report, on_signal() as stop:
        result = fit(experiment, args.workdir, report=report, stop=stop)
    if result.stopped:
        print(f"stopped at step {result.step} of {experiment.train.steps} and saved; the same command goes on from there")
    else:
        score = "" if result.bits_per_byte is None else f", {result.bits_per_byte:.4f} bits per byte on validation"
        print(f"{args.workdir}: finished {result.step} steps{score}")


def evaluate(args) -> None:
    """Loss, perplexity and bits per byte of a run's newest checkpoint."""
    from jaxeff.evaluate.perplexity import evaluate
    from jaxeff.train.loop import restore_weights
    from jaxeff.train.workdir import stored

    experiment = stored(args.workdir)
    prepared = experiment.data.prepare()
    batches = prepared.eval(args.split)
    weights, step = restore_weights(args.workdir)
    found = evaluate(
        experiment.model, weights, batches, prepared.tokenizer.token_bytes, policy=experiment.policy, mesh=experiment.mesh.make()
    )
    print(json.dumps({"step": step, "split": args.split, **found}) if args.json else readings(step, args.split, found))


def readings(step: int, split: str, found) -> str:
    """The result of an evaluation in words."""
    return (
        f"step {step}, {split}: loss {found['loss']:.4f} nats per token, perplexity {found['perplexity']:.3f},"
        f" {found['bits_per_byte']:.4f} bits per byte ({found['n_tokens']:,} tokens, {found['n_bytes']:,} bytes)"
    )


def generate(args) -> None:
    """Continue a prompt with a run's newest checkpoint."""
    import jax

    from jaxeff.models.generate import generate
    from jaxeff.train.loop import restore_weights
    from jaxeff.train.workdir import stored

    experiment = stored(args.workdir)
    tokenizer = experiment.data.prepare().tokenizer
    weights, _ = restore_weights(args.workdir)
    tokens = generate(
        experiment.model, weights, [[tokenizer.bos_id, *tokenizer.encode(args.prompt)]], args.max_tokens,
        temperature=args.temperature, top_k=args.top_k, top_p=args.top_p, min_p=args.min_p,
        key=jax.random.key(args.seed), eos=tokenizer.eos_id, policy=experiment.policy,
    )[0].tolist()  # fmt: skip
    if tokenizer.eos_id in tokens:
        tokens = tokens[: tokens.index(tokenizer.eos_id)]
    print(args.prompt + tokenizer.decode(tokens))


def ablate(args) -> None:
    """Compare models fairly; writes results.json and report.html, and prints the table."""
    from jaxeff.lab.command import ablate

    ablate(args.config, args.workdir, args.only)


def bench(args) -> None:
    """Run a benchmark."""
    from jaxeff.bench.registry import add_arguments, run

    bench_parser = argparse.ArgumentParser(prog="jaxeff bench")
    add_arguments(bench_parser)
    options = vars(bench_parser.parse_args(args.arguments))
    run(options.pop("benchmark"), **options)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    root = argparse.ArgumentParser(prog="jaxeff", description="Efficient language-model architectures and adaptation in JAX.")
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name, function):
        sub = commands.add_parser(name, help=function.__doc__.splitlines()[0], description=function.__doc__)
        sub.set_defaults(function=function)
        return sub

    sub = command("train", train)
    sub.add_argument("config", help="a Python file with `def config() -> Experiment`")
    sub.add_argument("--workdir", required=True, help="folder of the run: checkpoints, metrics.jsonl, run.json")
    sub.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="override a field, e.g. model.d_model=512")

    sub = command("eval", evaluate)
    sub.add_argument("--workdir", required=True)
    sub.add_argument("--split", default="validation", help="train, validation or test (default: validation)")
    sub.add_argument("--json", action="store_true", help="print one JSON object")

    sub = command("generate", generate)
    sub.add_argument("--workdir", required=True)
    sub.add_argument("--prompt", default="", help="the text to go on from (default: the start of a document)")
    sub.add_argument("--max-tokens", type=int, default=100)
    sub.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default)")
    sub.add_argument("--top-k", type=int)
    sub.add_argument("--top-p", type=float)
    sub.add_argument("--min-p", type=float)
    sub.add_argument("--seed", type=int, default=0)

    sub = command("ablate", ablate)
    sub.add_argument("config", help="a Python file with `def ablation() -> Ablation`")
    sub.add_argument("--workdir", required=True, help="folder of the results; an interrupted ablation goes on there")
    sub.add_argument("--only", metavar="NAME", help="one model of the ablation")

    sub = command("bench", bench)
    sub.add_argument("arguments", nargs=argparse.REMAINDER, help="NAME and its options; without NAME, the list of benchmarks")
    return root


def main(argv: Sequence[str] | None = None) -> int:
    """The console script. Returns the exit code."""
    args = parser().parse_args(argv)
    try:
        args.function(args)
    except UserError as error:
        print(f"jaxeff: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
