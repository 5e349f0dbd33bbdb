"""`jaxeff ablate`: an ablation with its progress, its table and the commands that reproduce its rows on the terminal."""

import shlex
from pathlib import Path

from rich.console import Console

from jaxeff.lab import table
from jaxeff.lab.ablation import load
from jaxeff.lab.progress import shown
from jaxeff.lab.run import run
from jaxeff.train.signals import Stopped


def ablate(config: str, workdir: str, only: str | None = None) -> int:
    """Run what is missing of the ablation of a config file, or of its model `only`; the exit status, 0 when all is done. Raises
    UserError as `run` does."""
    console = Console()
    command = f"jaxeff ablate {shlex.quote(str(config))}"
    ablation = load(config)
    progress = shown(console)
    try:
        results = run(ablation, workdir, only, progress, command)
    except Stopped as stopped:
        progress.close()
        again = " ".join(
            (ablation.environment, command, "--workdir", shlex.quote(str(workdir)), f"--only {only}" if only else "")
        )
        print(f"stopped and saved; this goes on from there: {again.strip()}", flush=True)
        return stopped.status
    finally:
        progress.close()
    console.print()
    table.show(results, console)
    console.print("\nreproduce a row:", highlight=False)
    for row in results.rows:
        console.print(f"  {row.reproduce}", highlight=False, soft_wrap=True)
    console.print(f"\nreport: {Path(workdir) / 'report.html'}", highlight=False, soft_wrap=True)
    return 0
