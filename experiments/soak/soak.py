"""One small run, disturbed for an hour, must be the run that nobody disturbed.

    .venv/bin/python experiments/soak/soak.py --minutes 60 --seed 0 --out FILE

Trains by `jaxeff train` in subprocesses; kills them at random moments, fills the disk, sets the clock, cuts files short; starts the
same command again each time. In the end: every line equal to the undisturbed run's, every step once, the same bits in the last
checkpoint; and no start went on from before the last finished checkpoint. Exit status 1 when anything differs.
"""

import argparse
import collections
import random
import re
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(1, str(Path(__file__).parents[2]))

from disturbances import METHODS, MOMENTS, Disturber, Event, plan  # noqa: E402
from run_under_test import PATIENCE, Process, Run  # noqa: E402

import jaxeff  # noqa: E402
from jaxeff.train.circumstances import git, processor  # noqa: E402

STEPS_EACH = 80  # steps a disturbance, on average
REPEATED = ("step", "loss", "grad_norm", "lr", "tokens", "skipped", "eval_bits_per_byte", "eval_loss", "eval_accuracy")
GOING_ON = re.compile(r"^going on from step (\d+) of", re.MULTILINE)


def whole(folder: Path, steps: int, rng: random.Random) -> tuple[Run, float]:
    """The run that nothing disturbs, and the seconds from its start to its first step."""
    run, begun = Run(folder, "undisturbed", steps, rng), time.monotonic()
    process = run.start()
    process.until(lambda: "compiling" in process.out)
    starting = time.monotonic() - begun
    code = process.popen.wait()
    if code != 0:
        sys.exit(f"the undisturbed run ended with status {code}: {process.err[-2000:]}")
    print(
        f"the undisturbed run: {steps} steps in {time.monotonic() - begun:.0f} s, {starting:.0f} s to the first",
        flush=True,
    )
    return run, starting


def judge(process: Process, before: list[int], disturbed: str | None, waiting: list[Event]) -> bool:
    """Looks at one start: what it went on from, and what it said. True where that settles the events that wait for it.

    before: steps of the intact checkpoints when it started. disturbed: the kind of disturbance that may make it say something.
    """
    found, out, err = GOING_ON.search(process.out), process.out, process.err
    last = waiting[-1] if waiting else Event("start", "")
    expected = [event for event in waiting if event.expected]
    if "Traceback" in err:
        last.wrong.append(f"a traceback in {process.log}.err")
    elif err.strip() and not expected and (disturbed is None or "damaged" in err):
        last.wrong.append(f"said {err.strip()[:300]!r}")
    for event in expected:
        event.said += err if event.expected in err else ""
    if found is None:
        if "compiling" in out and before:
            last.wrong.append(f"began anew although there were checkpoints {before}")
        return "compiling" in out
    for event in waiting:
        event.went_on = int(found[1])
        if event.expected and not event.said:
            event.wrong.append("the damage was not mentioned")
    if before and int(found[1]) < before[-1]:
        last.wrong.append(f"went on from {found[1]}, though step {before[-1]} was saved")
    return True


def settle(disturber: Disturber) -> None:
    """Judges the starts since last time, and prints the events that are settled."""
    waiting = disturber.waiting
    for process, before, disturbed in disturber.begun:
        if judge(process, before, disturbed, waiting):
            for event in waiting:
                again = (
                    ""
                    if event.went_on is None
                    else f", went on from {event.went_on} ({event.step - event.went_on} steps again)"
                )
                verdict = "WRONG: " + "; ".join(event.wrong) if event.wrong else "ok"
                now = time.strftime("%H:%M:%S")
                where = f"at step {event.step}, saved {event.saved}"
                print(f"{now} {event.name:28} {event.how}; {where}{again}: {verdict}", flush=True)
            if any(event.moment in ("array", "record") for event in waiting):
                disturber.damaged.clear()
            waiting.clear()
    disturber.begun.clear()


def disturb(
    run: Run, disturber: Disturber, todo: list[tuple[str, str]], minutes: float, rng: random.Random
) -> list[Event]:
    """Does what was planned, and goes on with kills while there is time and there are steps left."""
    begun, events = time.monotonic(), []
    while True:
        seconds = time.monotonic() - begun
        each = seconds / len(events) if events else 30.0
        left = max(len(todo), int((minutes * 60 - seconds) / each))
        if left <= 0 or run.steps - run.step() < 30 or seconds > 180 * minutes:
            return events + leftover(todo)
        disturber.share = max(1, (run.steps - run.step() - 20) // (left + 2))
        kind, moment = todo.pop(0) if todo else ("kill", rng.choice(MOMENTS["kill"]))
        event = getattr(disturber, METHODS[kind])(moment)
        # What its starts did first is the outcome of what came before; what came of it itself is seen at the next.
        settle(disturber)
        event.step, event.saved = run.step(), max(disturber.intact(), default=0)
        events.append(event)
        disturber.waiting.append(event)


def leftover(todo: list[tuple[str, str]]) -> list[Event]:
    """What was planned and not done, each as something wrong."""
    return [Event(kind, moment, wrong=["there was no time left, or no step"]) for kind, moment in todo]


def finish(disturber: Disturber) -> list[str]:
    """The command once more, to the end; what is wrong with that start."""
    process = disturber.start(Event("start", "the last"))
    process.popen.wait(PATIENCE * 10)
    settle(disturber)
    if disturber.waiting:
        return [f"the last start did not get as far as training: {process.err[-500:]}"]
    return (
        []
        if process.popen.returncode == 0
        else [f"the last start: status {process.popen.returncode}, {process.err[-500:]}"]
    )


def compare(run: Run, other: Run) -> list[str]:
    """What differs between the disturbed run and the undisturbed one."""
    found = []
    ours, theirs = run.lines(), other.lines()
    counts = collections.Counter(line["step"] for line in ours)
    missing = [step for step in range(1, run.steps + 1) if not counts[step]]
    doubled = [step for step, n in counts.items() if n > 1]
    if missing or doubled or [line["step"] for line in ours] != sorted(counts):
        found.append(f"metrics.jsonl: steps missing {missing[:10]}, twice {doubled[:10]}, or out of order")
    expected = {line["step"]: {name: line.get(name) for name in REPEATED} for line in theirs}
    other_lines = [line["step"] for line in ours if {n: line.get(n) for n in REPEATED} != expected.get(line["step"])]
    if other_lines:
        found.append(f"{len(other_lines)} lines differ, the first at step {other_lines[0]}")
    if run.saved()[-1:] != [run.steps] or run.checksum() != other.checksum():
        found.append("the last checkpoint's checksums differ")
    return found


def table(events: list[Event]) -> str:
    """What was done how often, and what came of it."""
    rows = [
        "| disturbance | times | wrong | steps done again, mean and most | went on from the last save |",
        "|---|---|---|---|---|",
    ]
    for name in sorted({event.name for event in events}):
        mine = [event for event in events if event.name == name]
        again = [event.step - event.went_on for event in mine if event.went_on is not None]
        steps = f"{sum(again) / len(again):.1f}, {max(again)}" if again else "none"
        wrong = sum(bool(event.wrong) for event in mine)
        rows.append(f"| {name} | {len(mine)} | {wrong} | {steps} | {len(again)} of {len(mine)} |")
    return "\n".join(rows)


def text(events: list[Event], wrong: list[str], run: Run, disturber: Disturber, args, minutes: float) -> str:
    """The README."""
    commit = (git() or {}).get("commit", "unknown")
    counts = collections.Counter(event.kind for event in events)
    verdict = "nothing differs" if not wrong else f"{len(wrong)} things are wrong"
    said = collections.Counter(re.sub(r"^[\d,]+", "some", e.how) for e in events if e.kind == "disk full")
    return f"""# A run disturbed for an hour

Is a run that is killed, finds the disk full, the clock set and its files cut short, and is started again each time by the same
command, the run that nobody disturbed? It would not be if a single loss of a single step had another bit.

    .venv/bin/python experiments/soak/soak.py --minutes {args.minutes:g} --seed {args.seed} --out experiments/soak/README.md

Run at commit {commit[:12]} on {processor()}, {minutes:.0f} minutes, {run.steps} steps, {run.n_starts} starts.
Disturbed {len(events)} times: {", ".join(f"{n} x {kind}" for kind, n in counts.items())}. Result: {verdict}.

Compared with an undisturbed run of the same config: every line of metrics.jsonl (loss, gradient, learning rate, tokens, scores),
bit for bit; every step exactly once; checksums of the last checkpoint. And of each start: that it went on from the last finished
checkpoint, or from the one before it where that one was damaged, and that it showed no traceback.

{table(events)}

A start that was disturbed again before it read a checkpoint leaves the judgement to the one after it.

- Full disks: {disturber.disks}. What the command said: {"; ".join(f"{how} ({n})" for how, n in said.most_common())}.
- Clocks: {disturber.clocks}.
- metrics.jsonl is cut behind the line of the last checkpoint, as a kill would: lines before it are not written again.
- Temporary files left in the end: {len(run.litter())} ({", ".join(run.litter()[:5]) or "none"}).

## What is wrong

{chr(10).join(f"- {line}" for line in wrong) or "Nothing."}
"""


def main() -> int:
    """The whole of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--folder", type=Path, help="for everything written; a new temporary one by default")
    parser.add_argument("--only", help="disturbances whose name holds this text, each five times")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    folder = (args.folder or Path(tempfile.mkdtemp(prefix="jaxeff-soak-"))).absolute()
    print(f"jaxeff of {Path(jaxeff.__file__).parent}; everything is in {folder}", flush=True)
    todo = plan(args.minutes, rng)
    if args.only:
        todo = 5 * sorted({(k, m) for k, moments in MOMENTS.items() for m in moments if args.only in f"{k}: {m}"})
    other, starting = whole(folder, STEPS_EACH * (len(todo) + 5), rng)
    run = Run(folder, "disturbed", other.steps, rng)
    run.mount()
    disturber, begun = Disturber(run, starting), time.monotonic()
    try:
        events = disturb(run, disturber, todo, args.minutes, rng)
        wrong = finish(disturber) + compare(run, other)
        wrong += [f"{event.name}: {problem}" for event in events for problem in event.wrong]
        found = text(events, wrong, run, disturber, args, (time.monotonic() - begun) / 60)
    finally:
        run.unmount()
    print(found)
    if args.out is not None:
        args.out.write_text(found)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
