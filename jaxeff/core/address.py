"""Addresses of folders in stores: gs://BUCKET/PATH, s3://BUCKET/PATH."""

import re
from difflib import get_close_matches

from jaxeff.core.errors import UserError

SCHEMES = ("gs", "s3")
LIKE = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(/+)(.*)", re.DOTALL)
PART = re.compile(r"(?!\.+$)[A-Za-z0-9._=+@,~-]+")  # what no client of a store takes for something else


def address(folder) -> str | None:
    """Where a folder is in a store, None where it is one of this machine.

    Raises UserError for what can be meant as an address only, and is none.
    """
    found = LIKE.fullmatch(str(folder))
    if found is None:
        return None
    scheme, slashes, rest = found.groups()
    parts = rest.rstrip("/").split("/")
    right = len(parts) > 1 and all(map(PART.fullmatch, parts))
    if right and scheme in SCHEMES and slashes == "//":
        return f"{scheme}://{'/'.join(parts)}"
    close = get_close_matches(scheme.lower(), SCHEMES, n=1, cutoff=0.5) if right else []
    meant = f"; did you mean {close[0]}://{'/'.join(parts)}?" if close else ""
    raise UserError(f"{folder} is no folder and no address, gs://BUCKET/PATH or s3://BUCKET/PATH{meant}")
