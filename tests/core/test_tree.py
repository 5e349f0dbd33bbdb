import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxeff.core.errors import UserError
from jaxeff.core.tree import combine, map_with_path, match, partition, paths

TREE = {"blocks": {"0": {"mixer": {"q": jnp.ones(2), "v": jnp.zeros(3)}}}, "embed": jnp.arange(4)}


def test_paths_are_slash_joined():
    assert list(paths(TREE)) == ["blocks/0/mixer/q", "blocks/0/mixer/v", "embed"]
    assert map_with_path(lambda path, x: path, TREE)["blocks"]["0"]["mixer"]["v"] == "blocks/0/mixer/v"


def test_first_matching_rule_wins():
    found = match([(".*/q", 1), (".*/(q|v)", 2)], paths(TREE))
    assert found == {"blocks/0/mixer/q": 1, "blocks/0/mixer/v": 2}


def test_rules_match_whole_paths():
    with pytest.raises(UserError, match="embed"):
        match([("embe", 1)], paths(TREE))


def test_rule_without_a_match_names_the_nearest_paths():
    with pytest.raises(UserError, match=r"did you mean 'blocks/0/mixer/q'"):
        match([("blocks/0/mixr/q", 1)], paths(TREE))


def test_broken_regular_expression():
    with pytest.raises(UserError, match="not a regular expression"):
        match([("(", 1)], paths(TREE))


def test_a_rule_that_comes_too_late_is_refused():
    with pytest.raises(UserError, match=r"'.*/q' matches only what rules before it took, such as 'blocks/0/mixer/q'"):
        match([(".*/(q|v)", 1), (".*/q", 2)], paths(TREE))


def test_bare_rules_have_no_setting():
    assert match(["embed"], paths(TREE)) == {"embed": None}


@given(st.lists(st.text("abc/", min_size=1, max_size=6), min_size=2, unique=True), st.data())
def test_match_agrees_with_a_plain_search(names, data):
    import re

    wanted = data.draw(st.sampled_from(names))
    rules = [(re.escape(wanted), "one"), (".*", "rest")]
    assert match(rules, names) == {name: "one" if name == wanted else "rest" for name in names}


def test_partition_and_combine_are_inverse():
    kept, rest = partition(TREE, lambda path, leaf: path.endswith("/q"))
    assert rest["embed"] is not None and kept["embed"] is None and rest["blocks"]["0"]["mixer"]["q"] is None
    assert list(paths(kept)) == ["blocks/0/mixer/q"] and list(paths(rest)) == ["blocks/0/mixer/v", "embed"]
    whole = combine(kept, rest)
    assert jax.tree.structure(whole) == jax.tree.structure(TREE)
    assert all(a is b for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(TREE), strict=True))


def test_gradients_exist_for_the_kept_part_only():
    kept, rest = partition(TREE, lambda path, leaf: path.endswith("/q"))
    grads = jax.grad(lambda kept: jnp.sum(combine(kept, rest)["blocks"]["0"]["mixer"]["q"] ** 2))(kept)
    assert len(jax.tree.leaves(grads)) == 1
