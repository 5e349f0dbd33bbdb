"""`jaxeff`: a thin layer over functions that a notebook can call too.

Exit status: 0 when done (or stopped by a signal, and saved), 2 when the user can put it right (one line on stderr), and
whatever Python says, with a traceback, when the fault is ours.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence

from jaxeff import __version__
from jaxeff.core.errors import UserError


class Parser(argparse.ArgumentParser):
    """One that says in one line what is wrong; the parsers of its subcommands are of its kind."""

    def error(self, message: str):
        """Ends the process."""
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}; see {self.prog} --help\n")


def parser() -> Parser:
    """The command line."""
    top = Parser(prog="jaxeff", description="Efficient language models: train, evaluate, generate, compare.")
    top.add_argument("--version", action="version", version=f"jaxeff {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)

    train = commands.add_parser("train", help="train a config, or go on where it was interrupted")
    train.add_argument("config", metavar="CONFIG", help="a Python file with config() -> Experiment")
    train.add_argument(
        "--set", action="append", default=[], metavar="PATH=VALUE", help="change a field: train.steps=100"
    )
    train.add_argument(
        "--base",
        metavar="DIR",
        help="the run whose weights it starts from; hf:DIR: a public checkpoint, model and tokenizer too",
    )
    _workdir(train)

    evaluate = commands.add_parser("eval", help="loss, perplexity and bits per byte of a trained model")
    evaluate.add_argument("--split", default="validation", help="train, validation (default) or test")
    evaluate.add_argument("--tasks", metavar="NAME,...", help="tasks of lm-eval instead, scored as its own models are")
    evaluate.add_argument("--include-path", metavar="DIR", help="folder with tasks of your own, as lm-eval reads them")
    _any_base(evaluate)
    _config(evaluate, "of a run that defines classes of its own; of a public checkpoint: whose data it is to read")
    _run_or_public(evaluate)

    generate = commands.add_parser("generate", help="sample text from a trained model")
    generate.add_argument(
        "--prompt",
        action="append",
        help="the text to go on from (default: the start of a document); several: one answer each",
    )
    _sampling(generate, 0.0, 100)
    _any_base(generate)
    _config(generate)
    _run_or_public(generate, "folder of a run; several: one answer each, by their adapters on one base", "append")

    chat = commands.add_parser("chat", help="talk with a public checkpoint in the terminal, by its own template")
    chat.add_argument("--model", required=True, metavar="hf:DIR", help="a public checkpoint that was trained to chat")
    chat.add_argument("--system", metavar="TEXT", help="what it is told before the conversation")
    _sampling(chat, 0.7, 512)

    convert = commands.add_parser("convert", help="a run as a public checkpoint, or a public checkpoint as a run")
    convert.add_argument("source", metavar="SRC", help="folder of a run, or hf:DIR for a public checkpoint")
    convert.add_argument("target", metavar="DST", help="the same; at least one is hf:DIR")
    convert.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="of the public checkpoint's numbers"
    )

    export = commands.add_parser("export", help="a model as files that run without jaxeff, by jax.export")
    export.add_argument("--batch", type=int, default=1, help="texts at once (default 1)")
    export.add_argument("--prompt-length", type=int, default=64, help="of the longest prompt, in tokens (default 64)")
    export.add_argument("--max-length", type=int, default=256, help="of the longest text (default 256)")
    export.add_argument("--platforms", metavar="P,...", help="cpu, cuda, tpu (default: that of this machine)")
    _out(export, "folder of the files")
    _any_base(export)
    _config(export)
    _run_or_public(export)

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


def _folder(text: str) -> str:
    """A folder's name as an argument."""
    if not text.strip():
        raise argparse.ArgumentTypeError("a folder must have a name")
    return text


def _workdir(command: argparse.ArgumentParser):
    command.add_argument("--workdir", required=True, type=_folder, metavar="DIR", help="folder of the run")


def _workdirs(command: argparse.ArgumentParser, what: str):
    command.add_argument("--workdir", required=True, action="append", type=_folder, metavar="DIR", help=what)


def _any_base(command: argparse.ArgumentParser):
    command.add_argument(
        "--any-base", action="store_true", help="take frozen weights as they are, even if training saw others"
    )


def _out(command: argparse.ArgumentParser, what: str = "folder of the new run"):
    command.add_argument("--out", required=True, type=_folder, metavar="DIR", help=what)


def _config(command: argparse.ArgumentParser, what: str = "where it defines classes of its own"):
    command.add_argument("--config", metavar="CONFIG", help=f"the config file {what}")


def _run_or_public(command: argparse.ArgumentParser, what: str = "folder of the run", action: str = "store"):
    either = command.add_mutually_exclusive_group(required=True)
    either.add_argument("--workdir", action=action, type=_folder, metavar="DIR", help=what)
    either.add_argument("--model", metavar="hf:DIR", help="a public checkpoint instead")


def _sampling(command: argparse.ArgumentParser, temperature: float, tokens: int):
    command.add_argument("--max-tokens", type=int, default=tokens)
    command.add_argument(
        "--temperature", type=float, default=temperature, help=f"0 is greedy (default {temperature:g})"
    )
    command.add_argument("--top-k", type=int)
    command.add_argument("--top-p", type=float)
    command.add_argument("--min-p", type=float)
    command.add_argument("--seed", type=int, default=0)


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
    from jaxeff.train.public import onto
    from jaxeff.train.signals import on_signal

    experiment = load(args.config)
    experiment = override(experiment if args.base is None else onto(experiment, args.base), args.set)
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
    if args.tasks is not None:
        print(_scored(args))
        return
    from jaxeff.evaluate.scores import evaluate
    from jaxeff.train.progress import shown
    from jaxeff.train.public import load_public
    from jaxeff.train.trained import load_trained

    with shown() as report:
        if args.model is None:
            _define(args.config)
            run = load_trained(args.workdir, report, args.any_base)
        else:
            run = load_public(_public(args.model), _experiment(args.config), report)
        e = run.experiment
        found = evaluate(
            e.objective, e.model, run.weights, run.prepared.eval(args.split), policy=e.policy, report=report.stage
        )
    scores = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in found.scores.items())
    weights = ", ".join(f"{found.sums[name].weight:,.0f} {unit}" for name, unit in UNITS.items() if name in found.sums)
    when = f" at step {run.step}" if args.model is None else ""
    print(f"{args.split}{when}: {scores} ({weights})")


def _scored(args: argparse.Namespace) -> str:
    """The table of lm-eval's tasks."""
    import jaxeff.train.lm_eval  # noqa: F401  tells lm-eval of us
    from jaxeff.evaluate.lm_eval import table

    _define(args.config)
    model = args.workdir if args.model is None else _public(args.model)
    return table(args.tasks, args.include_path, model=model, any_base=args.any_base)


def generate(args: argparse.Namespace) -> None:
    """`jaxeff generate`."""
    import numpy as np

    from jaxeff.models.generate import generate

    prompts = args.prompt or [""]
    for prompt in prompts:
        _check_text(prompt)
    model, weights, tokenizer, policy, names = _speaker(args, len(prompts))
    prompts = prompts * len(names) if names else prompts
    rows = [tokenizer.prompt(prompt) or [tokenizer.bos_id] for prompt in prompts]
    longest = max(map(len, rows))
    tokens_BN = generate(
        model,
        weights,
        np.asarray([row + [0] * (longest - len(row)) for row in rows], np.int32),
        args.max_tokens,
        prompt_lengths=np.asarray([len(row) for row in rows]),
        eos=tokenizer.ends,
        policy=policy,
        **_sampled(args),
    )
    for i, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
        new = np.asarray(tokens_BN[i]).tolist()
        new = new[: next((n for n, token in enumerate(new) if token in tokenizer.ends), len(new))]
        if names:
            print(f"{names[i]}:")
        print(prompt + tokenizer.decode(row + new)[len(tokenizer.decode(row)) :])


def _speaker(args: argparse.Namespace, n_prompts: int):
    """(model, weights, tokenizer, policy, a name for each answer) of `generate`."""
    import numpy as np

    from jaxeff.core.precision import POLICIES
    from jaxeff.train.progress import Silent
    from jaxeff.train.public import speaker
    from jaxeff.train.trained import load_adapters, load_trained
    from jaxeff.transforms.multi_lora import choose

    if args.model is not None:
        return *speaker(_public(args.model)), POLICIES["float32"], []
    _define(args.config)
    if len(args.workdir) == 1:
        run, names = load_trained(args.workdir[0], Silent(), args.any_base), []
        weights = run.weights
    elif n_prompts > 1:
        raise UserError("several prompts or several runs, not both")
    else:
        run, names = load_adapters(args.workdir, Silent(), args.any_base), args.workdir
        weights = choose(run.weights, np.arange(len(names)))
    return run.experiment.model, weights, run.prepared.tokenizer, run.experiment.policy, names


def _sampled(args: argparse.Namespace) -> dict:
    """What `_sampling` asks for."""
    import jax

    options = {name: getattr(args, name) for name in ("temperature", "top_k", "top_p", "min_p")}
    return options | {"key": jax.random.key(args.seed)}


def _check_text(text: str) -> None:
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise UserError("the prompt is not UTF-8")


def _public(name: str) -> str:
    """The name of a public checkpoint."""
    if not name.startswith("hf:"):
        raise UserError(f"--model {name}: a public checkpoint is named hf:DIR; a run of jaxeff: --workdir {name}")
    return name


def _experiment(config: str | None):
    """That of a config file, None without one."""
    from jaxeff.train.config_file import load

    return None if config is None else load(config)


def chat(args: argparse.Namespace) -> None:
    """`jaxeff chat`: a line is a turn, an empty line or the end of input ends it."""
    from jaxeff.models.generate import stream
    from jaxeff.train.public import speaker

    model, weights, tokenizer = speaker(_public(args.model))
    options = _sampled(args)
    said = [] if args.system is None else [{"role": "system", "content": args.system}]
    tokenizer.rendered([*said, {"role": "user", "content": "?"}])  # what cannot chat says so at once
    while (line := _line("> ")) is not None:
        _check_text(line)
        said.append({"role": "user", "content": line})
        answer, shown = [], ""
        for token in stream(model, weights, tokenizer.chat(said), args.max_tokens, eos=tokenizer.ends, **options):
            answer.append(token)
            text = tokenizer.decode(answer).rstrip("\ufffd")  # half a letter waits for its other half
            print(text[len(shown) :], end="", flush=True)
            shown = text
        print(flush=True)
        said.append({"role": "assistant", "content": shown})


def _line(prompt: str) -> str | None:
    """The next line of input, None when it is empty or there is none."""
    try:
        return input(prompt if sys.stdin.isatty() else "") or None
    except (EOFError, KeyboardInterrupt):
        return None


def convert(args: argparse.Namespace) -> None:
    """`jaxeff convert`."""
    from jaxeff.train.progress import shown
    from jaxeff.train.public import convert

    with shown() as report:
        print(convert(args.source, args.target, args.dtype, report))


def export(args: argparse.Namespace) -> None:
    """`jaxeff export`."""
    from jaxeff.interop.export import export

    args.workdir = args.workdir and [args.workdir]
    model, weights, tokenizer, policy, _ = _speaker(args, 1)
    ids = {} if tokenizer is None else {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id}
    platforms = args.platforms and args.platforms.split(",")
    export(
        args.out, model, weights, batch=args.batch, prompt=args.prompt_length, max_len=args.max_length, policy=policy,
        platforms=platforms, ids=ids,
    )  # fmt: skip
    print(f"written to {args.out}: prefill.bin, decode.bin, weights.safetensors, model.json")


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
    "chat": chat,
    "convert": convert,
    "export": export,
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
    except KeyboardInterrupt:
        print("jaxeff: stopped", file=sys.stderr, flush=True)
        return 130
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
