"""Text on the terminal while it is made."""

import sys
from collections.abc import Callable, Iterable


def write(text: str, end: str = "") -> None:
    """Writes text at once; letters that the output's encoding lacks become question marks."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, errors="replace").decode(encoding), end=end, flush=True)


def written(tokens: Iterable[int], text_of: Callable[[list[int]], str], before: str = "") -> str:
    """Writes `before` and the text of tokens as they come, and returns this text; half a letter waits for its other half.

    Nothing is written before the first token is there: what cannot be generated leaves an error alone.
    """
    found, text, done = [], "", 0
    for token in tokens:
        write("" if found else before)
        found.append(token)
        text = text_of(found)
        whole = text.rstrip("\ufffd")
        write(whole[done:])
        done = max(done, len(whole))
    write(text[done:], end="\n") if found else write(before, end="\n")
    return text
