"""What a bug report should say of where it happened: versions, devices, environment variables, state of the repository.

print(environment())
"""

import importlib.metadata
import os
import platform
import re
from collections.abc import Mapping

import jax

from jaxeff.train.circumstances import git, packages, processor, versions

# Variables that change what JAX, its compiler, its devices or jaxeff do.
VARIABLES = re.compile(r"(JAX|XLA|JAXEFF|LIBTPU|TPU|CUDA|NCCL|HIP|ROCR)_\w+|TF_CPP_\w+|LD_LIBRARY_PATH")
PLUGINS = re.compile(
    r"(jax-(cuda|rocm|metal).*|libtpu.*|ml-dtypes|nvidia-cud(nn|a-runtime).*)"
)  # what devices come with
SHOWN = 5  # changed files


def environment() -> str:
    """The lines of the report; where JAX starts no backend, one of them says why."""
    facts = _programs() | _repository() | _machine() | _backend() | _variables(os.environ)
    width = max(map(len, facts))
    return "\n".join(f"{name:{width}}  {text}".rstrip() for name, text in facts.items())


def _programs() -> dict[str, str]:
    """Versions: jaxeff and Python, then packages."""
    found = versions()
    absent = [name for name, version in packages().items() if version is None]
    return (
        {"jaxeff": found.pop("jaxeff")} | found | _plugins() | ({"not installed": ", ".join(absent)} if absent else {})
    )


def _plugins() -> dict[str, str]:
    names = {
        (d.metadata["Name"] or "").lower().replace("_", "-"): d.version for d in importlib.metadata.distributions()
    }
    return {name: names[name] for name in sorted(names) if PLUGINS.fullmatch(name)}


def _repository() -> dict[str, str]:
    state = git()
    if state is None:
        return {"git": "no repository"}
    changed = [line[3:] for line in state["changed"]]
    names = ", ".join(changed[:SHOWN]) + (", ..." if len(changed) > SHOWN else "")
    return {"git": state["commit"], "changed": f"{len(changed)} files: {names}" if changed else "nothing"}


def _machine() -> dict[str, str]:
    return {"system": platform.platform(), "processor": f"{processor()}, {os.cpu_count()} cores"}


def _backend() -> dict[str, str]:
    """Platform and devices, or why there are none."""
    try:
        devices = jax.devices()
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(":")
        return {"platform": f"none, JAX cannot start a backend: {reason}"}
    kinds = [device.device_kind for device in devices]
    named = ", ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds))
    return {"platform": jax.default_backend(), "devices": named, "processes": str(jax.process_count())}


def _variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Those that matter, as they stand now: jaxeff itself may have added to XLA_FLAGS."""
    found = {name: environ[name] for name in sorted(environ) if VARIABLES.fullmatch(name)}
    return {"XLA_FLAGS": "not set"} | found
