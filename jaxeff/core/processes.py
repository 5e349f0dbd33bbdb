"""Several processes that compute one thing together, each on its own host or device: how they find each other and part.

Where each process is to be found is said by flags, else by JAX's environment variables, else by the cluster: JAX knows TPU pods,
SLURM and Open MPI. A single process starts nothing.
"""

import contextlib
import os
import socket
import sys
import time
from typing import NamedTuple

from jaxeff.core.errors import UserError, warn
from jaxeff.core.lifeline import HELLO, Lifeline, gather, join

WAIT = 60.0  # seconds for the others to come
HEARTBEAT = 30  # seconds of silence after which a process counts as dead where its connection still stands
VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
FLAGS = ("--coordinator", "--processes", "--process")
CLUSTERS = ("slurm", "ompi", "gketpu", "gcetpu")  # those that answer without a package more


_LIFELINES: list[Lifeline] = []  # of this process, where it has joined others


class Place(NamedTuple):
    """Where a process stands: the coordinator's HOST:PORT, how many processes there are, which one this is, and the local devices
    that it is to use, None for all."""

    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None
    devices: list[int] | None = None


def start(
    coordinator: str | None = None, processes: int | None = None, process: int | None = None, wait: float = WAIT
) -> int:
    """Joins the other processes, before any backend of JAX starts. Returns how many there are: 1 where nothing was to be done.

    coordinator: HOST:PORT of process 0. wait: seconds for the coordinator and the other processes to come.

    Raises UserError when the place of this process is not said wholly or makes no sense, or when the others do not come in time.
    """
    place = _place(Place(coordinator, processes, process))
    if place.processes in (None, 1):
        return 1
    address = _address(place.coordinator)
    if place.process == 0:
        lifeline = gather(address, place.processes, wait, free_port())
    else:
        lifeline = join(address, place.process, place.processes, wait)
    _join(place, lifeline.port)
    lifeline.watch()
    _LIFELINES.append(lifeline)
    return place.processes


def several() -> bool:
    """Whether this process has joined others."""
    return client() is not None


def client():
    """What the processes tell each other through, None for a process on its own."""
    distributed = sys.modules.get("jax._src.distributed")
    return None if distributed is None else distributed.global_state.client


def finish() -> None:
    """Parts from the others, once all are done: each waits for the last one."""
    if several():
        import jax

        for lifeline in _LIFELINES:
            lifeline.over = True
        jax.distributed.shutdown()


def leave(status: int) -> None:
    """Ends this process at once where it has joined others and did not `finish`: they are not waited for, and notice."""
    if several():
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(status)


def lost(error: Exception) -> str | None:
    """What an error says about another process that has ended, None for other errors. The lifeline knows which, and ends this
    process meanwhile if it can."""
    text = str(error)
    signs = ("gloo", "Connection closed by peer", "Connection reset by peer", "coordination service", "heartbeat")
    if not several() or not any(sign.lower() in text.lower() for sign in signs):
        return None
    time.sleep(HELLO)
    return (
        "another process of this run has ended, and this one cannot go on alone; what it said tells why; started again, all go"
        " on from the last checkpoint"
    )


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _place(given: Place) -> Place:
    """What was given, completed by the environment and the cluster, and checked."""
    if given.processes == 1 and given[0] is given[2] is None:
        return given
    said = Place(*(_variable(name) if value is None else value for name, value in zip(VARIABLES, given)))
    found = said if None not in said[:3] else _completed(said)
    if found[:3] == (None, None, None):
        return found
    for flag, variable, value in zip(FLAGS, VARIABLES, found):
        if value is None:
            raise UserError(f"{', '.join(FLAGS)} belong together: {flag} is missing (or {variable} in the environment)")
    if found.processes < 1:
        raise UserError(f"--processes must be at least 1, found {found.processes}")
    if not 0 <= found.process < found.processes:
        last = found.processes - 1
        raise UserError(f"--process must lie in 0..{last} for --processes {found.processes}, found {found.process}")
    _address(found.coordinator)
    return found


def _variable(name: str) -> str | int | None:
    """The value of one of VARIABLES, a number but for the address; None where it is not set."""
    text = os.environ.get(name) or None
    if text is None or name == VARIABLES[0]:
        return text
    if not text.isdecimal():
        raise UserError(f"{name} must be a whole number, found {text!r}")
    return int(text)


def _completed(said: Place) -> Place:
    """What is not said yet, from the cluster that JAX detects; as it is where there is none, or one of a single process."""
    from jax._src.clusters import ClusterEnv

    for cluster in ClusterEnv._cluster_types:
        if cluster.name in CLUSTERS and _present(cluster):
            number = cluster.get_process_count()
            if number == 1 and said[:3] == (None, None, None):
                return said
            answers = Place(
                said.coordinator or cluster.get_coordinator_address(int(WAIT), os.environ.get("JAX_COORDINATOR_PORT")),
                number if said.processes is None else said.processes,
                cluster.get_process_id() if said.process is None else said.process,
            )
            return answers._replace(devices=None if _alone() else _one(cluster.get_local_process_id()))
    return said


def _present(cluster) -> bool:
    """Whether this process runs there. A machine that cannot say is taken to be on its own."""
    try:
        return cluster.is_env_present()
    except Exception as error:
        warn(f"cannot tell whether this is a cluster of kind {cluster.name} ({error}); if so, give {', '.join(FLAGS)}")
        return False


def _alone() -> bool:
    """Whether the cluster has started one process on each host, which then has all devices of its host."""
    tasks, hosts = os.environ.get("SLURM_NTASKS"), os.environ.get("SLURM_STEP_NUM_NODES")
    return os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") == "1" or (tasks is not None and tasks == hosts)


def _one(local: int | None) -> list[int] | None:
    return None if local is None else [local]


def _address(coordinator: str) -> tuple[str, int]:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(f"--coordinator: expected HOST:PORT, such as 10.0.0.1:8476, found {coordinator!r}")
    return host.strip("[]"), int(port)


def _join(place: Place, port: int) -> None:
    """JAX's own meeting: all are there, so that it takes no time."""
    import jax

    host, _ = _address(place.coordinator)
    # The signals that a run hears are its own affair: see jaxeff.train.signals.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
        place.processes,
        place.process,
        local_device_ids=place.devices,
        cluster_detection_method="deactivate",
        initialization_timeout=HEARTBEAT,
        heartbeat_timeout_seconds=HEARTBEAT,
        shutdown_timeout_seconds=HEARTBEAT,
    )
