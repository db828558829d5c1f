"""Groups of units as data: names, and the table that they are printed as."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

import bbjax as bb
from bbjax.model.checks import meant
from bbjax.model.groups import Graph, Group, Member
from bbjax.model.text import table


def members(role, *paths):
    return tuple(Member(path, 1, role, (4, 4)) for path in paths)


def test_no_two_groups_have_one_name_and_free_ones_are_counted_first():
    groups = [
        Group(2, members("makes", "qkv"), fixed="numbered"),
        Group(4, members("makes", "qkv")),
        Group(8, (*members("reads", "out"), *members("makes", "qkv"))),
        Group(8, members("reads", "out")),
    ]
    graph = Graph(tuple(groups))
    names = [group.name for group in graph]
    assert names == ["qkv[1]#3", "qkv[1]", "qkv[1]#2", "out[1]"]
    assert "qkv[1]#2" in str(graph)


def test_scores_reports_and_graph_have_the_same_names():
    def attend(p, x):
        q, k, v = jnp.split(jnp.einsum("td,dhe->hte", x, p["qkv"]), 3, axis=-1)
        out = jax.nn.softmax(q @ jnp.swapaxes(k, 1, 2)) @ v
        return jnp.einsum("hte,hed->td", out, p["out"])

    params = {"qkv": jnp.ones((8, 4, 6)), "out": jnp.ones((4, 2, 8))}
    x = jnp.ones((5, 8))
    units = bb.trace(attend, params, x)
    names = [group.name for group in units.graph]
    assert len(set(names)) == len(names)
    scores = bb.unitwise.group_magnitude(units, params)
    assert set(scores) == {group.name for group in units.graph if not group.fixed}
    assert {"qkv[2]", "qkv[2]#2"} <= set(scores)
    masks = bb.unitwise.cut(units, scores, 0.5)
    changes = bb.shrink(attend, params, masks, x).report.changes
    assert {change.group for change in changes} <= set(names)


def test_the_table_shows_two_of_many_members():
    paths = [f"layer{i}" for i in range(14)]
    text = str(Graph((Group(4, (*members("makes", *paths), *members("reads", "a"))),)))
    assert "layer0[1], layer1[1] and 12 more" in text and "layer2" not in text
    three = str(Graph((Group(4, members("makes", "a", "b", "c")),)))
    assert "a[1], b[1], c[1]" in three  # one more name is as short as "and 1 more"


def test_the_table_is_at_most_120_columns_wide():
    path = "params/encoder/layers_0/attention/query/kernel"
    group = Group(64, (*members("makes", path), *members("reads", path, "b" * 200)))
    text = str(Graph((group, Group(3, members("makes", "a"), fixed="why " * 30))))
    assert max(map(len, text.split("\n"))) <= 120
    assert text.count("why") == 30 and text.count("b") >= 200


def test_tables_without_a_width_stay_on_one_line():
    assert table(("a", "b"), [("x  y", "z")]) == "a     b\n----  -\nx  y  z"


def test_a_question_after_the_path_that_was_meant():
    known = ["params/Conv_0/kernel", "params/Conv_1/kernel"]
    assert meant("Conv_1/kernel", known) == " (did you mean 'params/Conv_1/kernel'?)"
    assert meant("0/params/Conv_0/kernel", known).endswith("'params/Conv_0/kernel'?)")
    assert meant("params/Conv_1/kernal", known).endswith("'params/Conv_1/kernel'?)")
    assert meant("bias", known) == ""


def up_down(params, x):
    p = params["params"]
    return jax.nn.relu(x @ p["up"]) @ p["down"]


PARAMS = {"params": {"up": jnp.ones((3, 4)), "down": jnp.ones((4, 2))}}
MASKS = {"up": jnp.ones((3, 4), bool)}
X = jnp.ones((5, 3))
CALLS = {
    "shrink": lambda units: bb.shrink(up_down, PARAMS, MASKS, X),
    "apply_masks": lambda units: bb.apply_masks(PARAMS, MASKS),
    "hold": lambda units: bb.hold(MASKS).init(PARAMS),
    "traffic": lambda units: bb.unitwise.traffic(
        units, bb.calibrate(up_down, units, PARAMS, [(X,)], needs=("on_rate",)), MASKS
    ),
    "scores": lambda units: bb.unitwise.cut(units, {"up[1]": jnp.ones(4)}, 0.5),
    "parameters": lambda units: bb.unitwise.group_magnitude(units, PARAMS["params"]),
}


@pytest.mark.parametrize("name", CALLS)
def test_paths_without_their_first_names_are_asked_about(name):
    units = bb.trace(up_down, PARAMS, X)
    with pytest.raises(ValueError, match=r"did you mean '(params/)?up(\[1\])?'\?"):
        CALLS[name](units)


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.BatchNorm(True, name="norm")(nn.Dense(4, name="up")(x)))
        return nn.Dense(2, name="down")(x)


@pytest.mark.long
def test_arguments_that_fix_units_are_named_with_what_helps():
    net = Normed()
    variables = net.init(jax.random.key(0), X)
    params, stats = variables["params"], variables["batch_stats"]

    def fn(params, stats, x):
        return net.apply({"params": params, "batch_stats": stats}, x)

    graph = bb.trace(fn, params, stats, X).graph
    why = {group.name: group.fixed for group in graph}
    size = "an argument of the function has this size: "
    assert why["up/kernel[1]"] == f"{size}args[0]/norm/mean"
    assert why["up/kernel[0]"] == f"{size}args[1]"
    call = "bb.trace(lambda both, *args: fn(both[0], both[1], *args), (params, args[0])"
    assert call in str(graph)
    with pytest.raises(
        ValueError, match=r"none: up/kernel\[1\]: .*args\[0\]/norm/mean"
    ):
        bb.unitwise.cut(bb.trace(fn, params, stats, X), {}, 0.5)
    helped = bb.trace(
        lambda both, *args: fn(both[0], both[1], *args), (params, stats), X
    )
    assert [g.name for g in helped.graph if not g.fixed] == ["0/up/kernel[1]"]
    assert not helped.graph.note


@pytest.mark.long
@pytest.mark.parametrize(
    ("where", "given"),
    [
        ("second", "fn(both[0], *args[:1], both[1], *args[1:]), (params, args[1])"),
        ("by name", "fn(both[0], *args, stats=both[1]), (params, stats)"),
    ],
)
def test_the_call_that_helps_is_that_of_the_argument(where, given):
    def fn(p, x, stats):
        return jax.nn.relu(x @ p["up"] - stats[None]) @ p["down"]

    params, stats = {"up": jnp.ones((3, 4)), "down": jnp.ones((4, 2))}, jnp.ones(4)
    args, named = ((X, stats), {}) if where == "second" else ((X,), {"stats": stats})
    assert given in bb.trace(fn, params, *args, **named).graph.note


@pytest.mark.long
def test_a_group_is_found_by_number_and_by_name():
    def net(params, x):
        return jax.nn.relu(x @ params["up"]) @ params["down"]

    params = {"up": jnp.ones((3, 8)), "down": jnp.ones((8, 2))}
    graph = bb.trace(net, params, jnp.ones((5, 3))).graph
    assert graph["up[1]"] is graph[0] and graph["down[1]"] is graph[-2]
    with pytest.raises(KeyError, match=r"got 'up\[2\]'.* they are \['up\[1\]'"):
        graph["up[2]"]
    with pytest.raises(IndexError):
        graph[3]
