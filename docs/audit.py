"""What pip-audit finds about an environment; that it cannot ask the index is said, and is no failure.

python docs/audit.py .venv-audit/bin/python .venv

Exit status: 0 when nothing is known against the packages, or nobody can be asked; 1 when something is.
"""

import importlib.metadata
import json
import subprocess
import sys
import tempfile
from pathlib import Path

SECONDS = 120
OWN = "jaxeff"  # installed from this folder, and in no index


def installed(environment: str) -> list[str]:
    """NAME==VERSION of everything in an environment, jaxeff left out."""
    folders = [str(folder) for folder in Path(environment).glob("lib/python*/site-packages")]
    found = {(d.name, d.version) for d in importlib.metadata.distributions(path=folders) if d.name != OWN}
    return sorted(f"{name}=={version}" for name, version in found)


def asked(python: str, packages: list[str]) -> list[dict] | None:
    """A dict for each package, as pip-audit writes it: with `skip_reason` where the index did not answer. None: nothing came."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "packages.txt"
        path.write_text("".join(f"{package}\n" for package in packages), encoding="utf-8")
        command = [python, "-m", "pip_audit", "--requirement", str(path), "--no-deps", "--disable-pip"]
        command += ["--format", "json", "--progress-spinner", "off", "--timeout", "10"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        except subprocess.TimeoutExpired:
            return None
    try:
        return json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        print(f"pip-audit: {reason[:200]}")
        return None


def main(python: str, environment: str) -> int:
    """Prints the findings; returns the exit status."""
    packages = installed(environment)
    answered = [one for one in asked(python, packages) or () if "skip_reason" not in one]
    if not answered:
        print(f"not audited: the index of vulnerabilities cannot be reached from here ({len(packages)} packages)")
        return 0
    known = [(one["name"], one["version"], v) for one in answered for v in one.get("vulns", ())]
    for name, version, v in known:
        print(f"{name} {version}: {v['id']}, fixed in {', '.join(v['fix_versions']) or 'no version yet'}")
    print(f"{len(answered)} of {len(packages)} packages audited, {len(known)} vulnerabilities known")
    return 1 if known else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
