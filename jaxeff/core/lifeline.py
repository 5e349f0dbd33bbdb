"""How several processes meet, and notice at once that one of them has died: each holds a connection to process 0.

The system closes a connection however a process ends. JAX would notice later, and then end the process in the middle of its own
complaint; the devices of a process that is left alone would wait for ever.

What is said, a line each: `I N` by a process that comes, its number and how many there are; `go PORT` to each once all are there;
`no REASON` where they will not be; `lost I` when one has died.
"""

import contextlib
import os
import selectors
import socket
import threading
import time

from jaxeff.core.errors import UserError, warn

LOST = 75  # the exit status of a process that another one has left alone: that of a failure that may pass
HELLO = 5.0  # seconds for who comes to say who it is
SILENCE = {
    "TCP_KEEPIDLE": 10,
    "TCP_KEEPINTVL": 5,
    "TCP_KEEPCNT": 3,
}  # of a host that is gone without a word: 25 seconds


class Lifeline:
    """The connections of one process to the others: of process 0 to all, of another one to process 0. port: as process 0 said."""

    def __init__(self, connections: dict[int, socket.socket], processes: int, port: int):
        self.connections, self.processes, self.port, self.over = connections, processes, port, False

    def watch(self) -> None:
        """From now on this process ends, with one line and status LOST, when another one does."""
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            for process, connection in self.connections.items():
                connection.settimeout(HELLO)
                selector.register(connection, selectors.EVENT_READ, process)
            while not self.over:
                for key, _ in selector.select():
                    words = _read(key.fileobj).split()
                    if not self.over:
                        self._end(int(words[1]) if words[:1] == ["lost"] else key.data)
                    selector.unregister(key.fileobj)

    def _end(self, process: int) -> None:
        for other, connection in self.connections.items():
            if other not in (0, process):
                with contextlib.suppress(OSError):
                    connection.sendall(f"lost {process}\n".encode())
        warn(
            f"error: process {process} of {self.processes} has ended, and this one cannot go on alone; what it said tells why;"
            " started again, all go on from the last checkpoint"
        )
        os._exit(LOST)


def gather(address: tuple[str, int], processes: int, wait: float, port: int) -> Lifeline:
    """Process 0 awaits the others, and tells them the port where JAX's coordinator will be.

    Raises UserError when nobody can listen there, when two claim one place, or when not all have come after `wait` seconds.
    """
    end, found = time.monotonic() + wait, {}
    with _listening(address[1]) as server:
        while len(found) < processes - 1:
            server.settimeout(max(0.01, end - time.monotonic()))
            try:
                connection, _ = server.accept()
            except TimeoutError:
                missing = ", ".join(str(i) for i in range(1, processes) if i not in found)
                reason = f"process {missing} of {processes} did not come within {wait:g} s; --wait SECONDS waits longer"
                raise _refused(found, reason) from None
            _greet(connection, found, processes)
    for connection in found.values():
        connection.sendall(f"go {port}\n".encode())
    return Lifeline(found, processes, port)


def join(address: tuple[str, int], process: int, processes: int, wait: float) -> Lifeline:
    """Another process comes to process 0, which may start later.

    Raises UserError when nobody is there within `wait` seconds, or when process 0 says that there is no beginning.
    """
    connection = _connected(address, wait)
    connection.settimeout(wait + HELLO)
    try:
        connection.sendall(f"{process} {processes}\n".encode())
        said, _, what = _read(connection).partition(" ")
    except OSError:
        said, what = "", ""
    if said != "go":
        raise UserError(f"process 0 at {_name(address)} begins without this one: {what or 'it has ended'}")
    return Lifeline({0: connection}, processes, int(what))


def _listening(port: int) -> socket.socket:
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        return socket.create_server(("", port), family=family, dualstack_ipv6=both, backlog=1024)
    except OSError as error:
        raise UserError(f"process 0 cannot listen on port {port}: {error.strerror}; choose another") from None


def _greet(connection: socket.socket, found: dict[int, socket.socket], processes: int) -> None:
    """Takes in who comes; strangers are sent away. Raises UserError when it can be none of these processes."""
    connection.settimeout(HELLO)
    words = _read(connection).split()
    if len(words) != 2 or not all(word.isdecimal() for word in words):
        connection.close()
        return
    process, theirs = map(int, words)
    if process in (0, *found) or theirs != processes:
        found[-1] = connection
        raise _refused(found, f"a process says that it is {process} of {theirs}; expected another one of {processes}")
    _keep_alive(connection)
    found[process] = connection


def _refused(found: dict[int, socket.socket], reason: str) -> UserError:
    """Tells all that there is no beginning."""
    for connection in found.values():
        with contextlib.suppress(OSError):
            connection.sendall(f"no {reason}\n".encode())
        connection.close()
    return UserError(reason)


def _connected(address: tuple[str, int], wait: float) -> socket.socket:
    end = time.monotonic() + wait
    while True:
        try:
            connection = socket.create_connection(address, timeout=max(0.1, end - time.monotonic()))
            _keep_alive(connection)
            return connection
        except OSError as error:
            if time.monotonic() >= end:
                raise UserError(
                    f"no coordinator at {_name(address)} within {wait:g} s ({error.strerror or error}): process 0 must run there;"
                    " --wait SECONDS waits longer"
                ) from None
            time.sleep(0.1)


def _keep_alive(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in SILENCE.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _read(connection: socket.socket) -> str:
    """One line, or what there was of it when the connection ended or nothing more came."""
    line = b""
    with contextlib.suppress(OSError):
        while not line.endswith(b"\n") and len(line) < 1000 and (byte := connection.recv(1)):
            line += byte
    return line.decode(errors="replace").strip()


def _name(address: tuple[str, int]) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
