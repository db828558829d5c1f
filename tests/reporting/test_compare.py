"""Masks side by side, and as fingerprints."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from bbjax.model.checks import on_host
from bbjax.reporting.compare import diff_masks, overlap, overlap_table

shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=9)
pairs = shapes.flatmap(
    lambda s: st.tuples(hnp.arrays(bool, s), hnp.arrays(bool, s), st.just(s))
)


# Side by side --------------------------------------------------------------------
@given(pair=pairs)
def test_differences_count_what_numpy_counts(pair):
    a, b, shape = pair
    row = diff_masks({"w": a}, {"w": jnp.asarray(b)})["w"]
    assert (row.shape_a, row.shape_b, row.problem) == (shape, shape, "")
    assert (row.kept_a, row.kept_b) == (a.sum(), b.sum())
    assert (row.both, row.flipped) == ((a & b).sum(), (a != b).sum())
    assert diff_masks({"w": a}, {"w": b}).same == np.array_equal(a, b)


def test_sharded_masks_are_gathered():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    mask = np.random.rand(16, 3) < 0.5
    sharded = jax.device_put(mask, NamedSharding(mesh, P("x")))
    assert diff_masks({"w": sharded}, {"w": jnp.asarray(mask)}).same


def test_masks_that_one_set_lacks_or_that_changed_shape_are_listed():
    a = {"x": np.ones(2, bool), "y": np.ones(3, bool)}
    b = {"y": np.ones((3, 1), bool), "z": np.zeros(4, bool)}
    diff = diff_masks(a, b)
    assert not diff.same
    problems = {row.path: row.problem for row in diff.rows}
    assert problems == {"x": "only in a", "y": "other shape", "z": "only in b"}
    assert {row.flipped for row in diff.rows} == {None}
    assert str(diff).splitlines() == [
        "mask  shape    kept in a  kept in b  in both  flipped",
        "----  -------  ---------  ---------  -------  -------  -----------",
        "x     2        2          -          -        -        only in a",
        "y     3 / 3x1  3          3          -        -        other shape",
        "z     4        -          0          -        -        only in b",
    ]


def test_an_unknown_path_of_a_difference_names_the_known_ones():
    with pytest.raises(KeyError, match="expected the path of a mask, got 'v'.*'w'"):
        diff_masks({"w": [True]}, {"w": [True]})["v"]


# Fingerprints --------------------------------------------------------------------
@given(pair=pairs)
def test_overlap_is_the_jaccard_index(pair):
    a, b, _ = pair
    found = overlap({"w": a}, {"w": b}).by_path["w"]
    either = (a | b).sum()
    assert found.jaccard == ((a & b).sum() / either if either else 1.0)
    assert found.agreement == pytest.approx((a == b).mean() if a.size else 1.0)
    assert 0 <= found.expected <= 1
    assert overlap({"w": b}, {"w": a}).by_path["w"] == found
    assert overlap({"w": a}, {"w": a}).overall.jaccard == 1


def test_two_masks_that_keep_nothing_are_equal():
    nothing = {"w": np.zeros((2, 3), bool)}
    assert overlap(nothing, nothing).overall == (1.0, 1.0, 1.0)
    full = {"w": np.ones((2, 3), bool)}
    assert overlap(nothing, full).overall == (0.0, 0.0, 0.0)


def test_random_masks_overlap_as_expected_by_chance():
    rng = np.random.default_rng(0)
    densities = {"x": (0.1, 0.3), "y": (0.6, 0.02)}
    a, b = (
        {path: rng.permutation(40_000) < 40_000 * d[i] for path, d in densities.items()}
        for i in (0, 1)
    )
    found = overlap(a, b)
    for measured in (found.overall, *found.by_path.values()):
        assert measured.jaccard == pytest.approx(measured.expected, rel=0.05)
    # By chance within each mask: pooled densities would promise another overlap.
    assert found.overall.expected < 0.8 * (0.35 * 0.16) / (0.35 + 0.16 - 0.35 * 0.16)


def test_overall_is_of_all_weights_together():
    a = {"x": np.array([True, True]), "y": np.array([True, False, False, False])}
    b = {"x": np.array([True, True]), "y": np.array([False, True, True, False])}
    found = overlap(a, b)
    assert found.overall.jaccard == 2 / 5
    assert found.overall.agreement == 1 / 2
    assert str(found).splitlines()[2:] == [
        "x             1.0000   1.0000    1.0000",
        "y             0.0000   0.2000    0.2500",
        "all together  0.4000   0.5556    0.5000",
    ]


def test_the_table_is_symmetric_and_holds_every_pair():
    rng = np.random.default_rng(1)
    sets = {
        name: {"x": rng.random((8, 9)) < 0.3, "y": jnp.asarray(rng.random(20) < 0.5)}
        for name in "abc"
    }
    names, jaccard, expected = table = overlap_table(sets)
    assert names == ("a", "b", "c")
    assert jaccard.shape == expected.shape == (3, 3) and jaccard.dtype == np.float64
    np.testing.assert_array_equal(jaccard, jaccard.T)
    np.testing.assert_array_equal(np.diag(jaccard), 1)
    for (i, a), (j, b) in itertools.combinations(enumerate("abc"), 2):
        overall = overlap(sets[a], sets[b]).overall
        assert (jaccard[i, j], expected[i, j]) == overall[:2]
    *lines, last = str(table).splitlines()
    assert len(lines) == 5 and f"{jaccard[0, 1]:.4f}" in lines[2]
    assert last.startswith("expected by chance: 0.") and " to 0." in last


def test_a_table_of_one_has_no_pairs():
    table = overlap_table({0: {"w": np.ones(2, bool)}})
    assert table.names == ("0",) and str(table).endswith("by chance: no pairs")


def test_only_masks_of_the_same_parameters_overlap():
    a, b = {"w": np.ones(2, bool)}, {"w": np.ones(3, bool), "v": np.ones(1, bool)}
    problems = "that differ; .*\n  v: only in b\n  w: other shape"
    with pytest.raises(ValueError, match=f"two sets a and b {problems}"):
        overlap(a, b)
    with pytest.raises(ValueError, match=f"a = 'seed' and b = 'user' {problems}"):
        overlap_table({"seed": a, "user": b})


def test_a_table_wants_masks_by_name():
    with pytest.raises(TypeError, match="expected sets of masks by name, got list"):
        overlap_table([{"w": np.ones(2, bool)}])
    with pytest.raises(TypeError, match="expected masks by path, got ndarray"):
        overlap_table({"w": np.ones(2, bool)})


def test_masks_on_the_host_are_not_copied():
    mask = np.ones(3, bool)
    assert on_host({"w": mask})["w"] is mask
