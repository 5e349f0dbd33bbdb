"""Odd values for fuzzing: what people mistype, what other programs write, and what is nobody's."""

import copy
from typing import Any

from hypothesis import strategies as st

ODD_TEXTS = (
    "", " ", "0", "-1", "1", "2", "3", "1.5", "1e400", "-0.0", "nan", "inf", "1_000", "１２", "٣", "0x10", "1e3", "true", "None",
    "null", "[]", "()", "[1, 2]", "[1", "(1,)", "1,2,3", ",", ",,", "[[[[]]]]", "{}", "{'a': 1}", "'x'", '"', "\\", "a b", "a=b",
    "gqa", "mqa", "GQA", "linear", "mamba", "swiglu", "LoRA(rank=8)", "LoRA(rank=[])", "LoRA(rank=None)", "LoRA()()", "lora,int8",
    "LoRA(**{})", "[*x]", "lambda: 1", "__import__('os')", "Grammar", "python_docs", "text", "Adam", "none", "float16", "cosine",
    "9" * 30, "9" * 5000, "1" + "0" * 400, "(" * 300, "-" * 3000 + "1", "[" * 3000,
    "\0", "\ud800", "é", "🙂", "%s", "{0}", "../..", "/dev/null",
)  # fmt: skip

TEXTS = st.sampled_from(ODD_TEXTS) | st.text(max_size=12) | st.integers().map(str) | st.floats().map(str)

# What `json` writes and reads, of few kinds that are likely somewhere.
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from((0, -1, 1, 2, 2**40, 10**400))
    | st.floats()
    | st.sampled_from(ODD_TEXTS)
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(("type", "a", "rank")), inner, max_size=3)
    ),
)


def places(value, path: tuple = ()) -> list[tuple]:
    """The path of everything in JSON data."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, item in items for found in places(item, (*path, key)))]


def at(value, path: tuple) -> Any:
    """What is there."""
    for key in path:
        value = value[key]
    return value


@st.composite
def changed(draw, value, names: tuple[str, ...] = (), most: int = 3) -> Any:
    """JSON data with one to `most` things replaced, removed, renamed, or copied from elsewhere in it. names: further values."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, most))):
        path = draw(st.sampled_from(places(value)))
        how = draw(st.sampled_from(("replace", "remove", "rename", "move")))
        if not path:
            continue
        parent, key = at(value, path[:-1]), path[-1]
        if how == "remove":
            del parent[key]
        elif how == "rename" and isinstance(parent, dict):
            parent[draw(st.sampled_from(("type", "x", "", *map(str, parent))))] = parent.pop(key)
        elif how == "move":
            parent[key] = copy.deepcopy(at(value, draw(st.sampled_from(places(value)))))
        else:
            parent[key] = draw(VALUES | st.sampled_from(names) if names else VALUES)
    return value
