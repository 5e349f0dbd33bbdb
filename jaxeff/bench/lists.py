"""Options that are lists with commas."""

from jaxeff.core.errors import UserError


def numbers(text: str) -> list[int]:
    """`64,128`; raises UserError for anything else."""
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) for part in parts):
        raise UserError(f"expected whole numbers from 1 with commas between, found {text!r}")
    return [int(part) for part in parts]


def pairs(text: str) -> list[tuple[int, int]]:
    """`256x4,1024x1`; raises UserError for anything else."""
    return [_pair(part) for part in text.split(",")]


def _pair(text: str) -> tuple[int, int]:
    parts = text.split("x")
    if len(parts) != 2 or not all(part.isdecimal() and int(part) for part in parts):
        raise UserError(f"a size is TIMExBATCH, such as 256x4; found {text!r}")
    return int(parts[0]), int(parts[1])
