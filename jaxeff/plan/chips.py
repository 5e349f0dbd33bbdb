"""What a chip of each kind of TPU can do, from Google Cloud's documentation of TPU versions, and how its chips are linked.

A link's figure is one direction of one of the links between neighbours, of which a chip has two for each dimension of its grid
(1600, 4800 and 3584 Gbit/s a chip of v5e, v5p and v6e, over all of its links). Slices are joined by the network cards of the
hosts: 25, 50 and 100 Gbit/s a chip.
"""

import dataclasses
import os
import re

from jaxeff.core.errors import UserError, lookup
from jaxeff.core.peaks import TPUS

GIB = 2**30
# What tells the compiler's library that the machine it is on is no TPU, so that several may compile there at once.
ALONE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@dataclasses.dataclass(frozen=True)
class Chip:
    """hbm: bytes of main memory that the compiler leaves to a program. flops: of bfloat16 products a second. bandwidth: of main
    memory, bytes/s. link, dcn: bytes/s of a link and, between slices, of the network. closed: how many chips along a dimension make
    it a ring, multiples of it too where `cubes`. clock: cycles a second, at which the matrix units reach `flops`. unit: how wide
    these are."""

    hbm: int
    flops: float
    bandwidth: float
    link: float
    dcn: float
    closed: int
    cubes: bool
    clock: float
    unit: int


CHIPS = {
    "v5e": Chip(int(15.75 * GIB), TPUS["v5e"], 0.82e12, 50e9, 3.125e9, 16, False, 1.5e9, 128),
    "v5p": Chip(int(95.73 * GIB), TPUS["v5p"], 2.77e12, 100e9, 6.25e9, 4, True, 1.75e9, 128),
    "v6e": Chip(int(31.24 * GIB), TPUS["v6e"], 1.64e12, 112e9, 12.5e9, 16, False, 1.75e9, 256),
}


def chip_of(topology: str) -> Chip:
    """The chip of a topology such as "v5e:4x4", or of two slices of it, "2xv5e:4x4". Raises UserError for an unknown kind and for a
    text of another form."""
    kind, _, grid = _slice(topology)[1].partition(":")
    chip = lookup(CHIPS, kind, "kind of TPU")
    if not all(side.isdecimal() and int(side) > 0 for side in grid.split("x")):
        raise UserError(f"a topology is a kind of TPU and its grid, {kind}:4x4, found {topology!r}")
    return chip


def _slice(topology: str) -> tuple[int, str]:
    """(number of slices, topology of one)."""
    several = re.fullmatch(r"(\d+)x(\D.*)", topology)
    return (int(several[1]), several[2]) if several and int(several[1]) else (1, topology)


def devices_of(topology: str) -> list:
    """The chips of a TPU that need not be there, to compile for. Raises UserError for a topology that is none, and without the
    compiler's library."""
    from jax.experimental import topologies

    chip_of(topology)
    os.environ.update({name: value for name, value in ALONE.items() if name not in os.environ})
    try:
        slices, name = _slice(topology)
        return topologies.get_topology_desc(platform="tpu", topology_name=name, num_slices=slices).devices
    except Exception as error:  # the compiler's library is not there, or knows no such machine
        reason = str(error).partition("\n")[0]
        raise UserError(f"cannot compile for {topology!r}: {reason}; pip install 'jaxeff[plan]'") from error
