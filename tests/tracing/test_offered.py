"""What is offered as a kernel: a weight of 0 adds nothing, and the input is data.

Every other parameter with several axes that reaches the result is listed, with the
reason.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import lax
from jax.nn import relu

import bbjax as bb

pytestmark = pytest.mark.usefixtures("lenient")


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


X, ROTATION = normal(0, 5, 6), normal(1, 8, 8)
MASK = normal(2, 6, 8) > 0
P = {"w": normal(3, 6, 8), "o": normal(4, 8, 3)}


def net(change):
    return lambda p, x: relu(x @ change(p["w"])) @ p["o"]


KEEPS = {
    "itself": lambda w: w,
    "scaled by its norm": lambda w: w / jnp.linalg.norm(w, axis=0),
    "masked": lambda w: w * MASK,
    "chosen": lambda w: jnp.where(MASK, w, 0.0),
    "thresholded": lambda w: jnp.where(jnp.abs(w) > 0.1, w, 0.0),
    "cast": lambda w: w.astype(jnp.bfloat16).astype(jnp.float32),
    "tanh": jnp.tanh,
    "squared": lambda w: w**2,
    "clipped around 0": lambda w: jnp.clip(w, -0.5, 0.5),
    "rounded, straight through": lambda w: w + lax.stop_gradient(jnp.round(w) - w),
    "transposed twice": lambda w: w.T.T,
}
CHANGES = {
    "shifted": (lambda w: w + 1, "add"),
    "clipped off 0": (lambda w: jnp.clip(w, 0.1, 1.0), "max"),
    "exp": (jnp.exp, "exp"),
    "cosine": (jnp.cos, "cos"),
    "chosen or 1": (lambda w: jnp.where(MASK, w, 1.0), "select_n"),
    "divided by": (lambda w: 1.0 / w, "div"),
    "to the power 0": (lambda w: lax.integer_pow(w, 0), "integer_pow"),
}


@pytest.mark.parametrize("name", KEEPS)
def test_a_weight_whose_zeros_stay_zeros_is_offered(name):
    """The proof: what is pruned is 0 in the product as well."""
    fn = net(KEEPS[name])
    units = bb.trace(fn, P, X)
    assert units.paths == ("w", "o") and not units.problems
    pruned, masks = bb.prune(P, units.select("w"), bb.rules.magnitude(), density=0.5)
    assert (np.asarray(KEEPS[name](pruned["w"]))[~np.asarray(masks["w"])] == 0).all()


@pytest.mark.parametrize("name", CHANGES)
def test_a_weight_whose_zeros_change_is_listed_with_the_operation(name):
    change, by = CHANGES[name]
    units = bb.trace(net(change), P, X)
    why = f"reaches dot_general through {by}, after which a weight of 0 is not 0"
    assert dict(units.problems) == {"w": why}
    assert units.paths == ("o",)
    with pytest.raises(ValueError, match="after which a weight of 0 is not 0"):
        units.select("w")


def standardised(w):
    axes = tuple(range(w.ndim - 1))
    return (w - w.mean(axes, keepdims=True)) / (w.std(axes, keepdims=True) + 1e-5)


def convolved(p, x):
    dims = ("NHC", "HIO", "NHC")
    x = lax.conv_general_dilated(x, p["w"], (1,), "SAME", dimension_numbers=dims)
    return relu(x) @ p["o"]


def test_a_standardised_kernel_is_listed_until_it_is_folded():
    """As in BiT and in diffusion U-Nets."""
    p, x = {"w": normal(11, 3, 2, 8), "o": P["o"]}, normal(12, 4, 5, 2)

    def fn(p, x):
        return convolved(p | {"w": standardised(p["w"])}, x)

    why = (
        "is standardised before conv_general_dilated: its mean is subtracted, after "
        "which a weight of 0 is not 0; make the standardised weights the parameter "
        "(fold them) first"
    )
    assert dict(bb.trace(fn, p, x).problems) == {"w": why}
    folded = p | {"w": standardised(p["w"])}
    np.testing.assert_array_equal(convolved(folded, x), fn(p, x))
    units = bb.trace(convolved, folded, x)
    assert tuple(units.budgeted) == ("w",)
    _, masks = bb.prune(folded, units, bb.rules.magnitude(), density=0.5)
    assert masks["w"].sum() == 3 * 8  # windows of 3


def test_a_mask_behind_the_standardisation_is_a_kernel_if_it_is_a_parameter():
    """Its zeros cut the edges exactly, and leave the other weights as they are."""
    p = P | {"mask": jnp.ones((6, 8))}
    units = bb.trace(net_of_mask, p, X)
    assert units.paths == ("mask", "o") and [p for p, _ in units.others] == ["w"]


def net_of_mask(p, x):
    return relu(x @ (p["mask"] * standardised(p["w"]))) @ p["o"]


@pytest.mark.parametrize(
    "product", [lambda w: w @ ROTATION, lambda w: ROTATION[:6, :6] @ w]
)
def test_a_weight_that_is_rotated_before_it_meets_data_is_listed(product):
    units = bb.trace(net(product), P, X)
    why = "is multiplied by a constant before it meets data"
    assert dict(units.problems) == {"w": why}


def test_data_that_a_function_closes_over_are_data():
    units = bb.trace(lambda p: relu(X @ p["w"]) @ p["o"], P)
    assert units.paths == ("w", "o") and not units.problems


@pytest.mark.parametrize("scale", [1.0, MASK], ids=["plain", "masked"])
def test_beside_a_sum_of_other_parameters_the_weight_is_offered(scale):
    p = P | {"a": normal(6, 6, 2), "b": normal(7, 2, 8)}

    def fn(p, x):
        return relu(x @ (p["w"] + scale * (p["a"] @ p["b"]))) @ p["o"]

    units = bb.trace(fn, p, X)
    assert units.paths == ("w", "o")
    assert set(dict(units.problems)) == {"a", "b"}


# Parameters that are no kernels ----------------------------------------------------
def test_an_embedding_is_named_with_the_reason():
    p = P | {"emb": normal(8, 9, 6)}
    tokens = jnp.arange(5)
    units = bb.trace(net_of_tokens, p, tokens)
    assert units.others == (("emb", "is read by index (gather)"),)
    assert "no kernel: emb: is read by index (gather)" in str(units)
    with pytest.raises(ValueError, match="no kernel: 'emb' is read by index"):
        units.select("emb")
    assert units.select(".*").budgeted.keys() == {"w", "o"}


def net_of_tokens(p, tokens):
    return relu(p["emb"][tokens] @ p["w"]) @ p["o"]


@pytest.mark.parametrize(
    "fn, why",
    [
        (
            lambda p, x: relu((x[:, :, None] * p["w"]).sum(1)) @ p["o"],
            "is multiplied entry by entry, not as a matrix",
        ),
        (lambda p, x: relu(x.sum() + p["w"]) @ p["o"], "is added, not multiplied"),
        (
            lambda p, x: lax.sort(p["w"], dimension=0)[:5] @ p["o"] + x.sum(),
            "acts through sort, not as a matrix",
        ),
    ],
)
def test_every_other_use_is_named(fn, why):
    assert bb.trace(fn, P, X).others == (("w", why),)


def test_a_parameter_that_no_result_depends_on_is_not_listed():
    def fn(p, x):
        _ = p["w"] * 2
        return x @ p["v"]

    units = bb.trace(fn, P | {"v": normal(9, 6, 2)}, X)
    assert (units.paths, units.problems, units.others) == (("v",), (), ())


UNARY = {
    name: getattr(lax, name)
    for name in (
        "abs acos acosh asin asinh atan atanh bessel_i0e bessel_i1e cbrt ceil cos cosh "
        "digamma erf erf_inv erfc exp exp2 expm1 floor lgamma log log1p logistic neg "
        "reciprocal round rsqrt sign sin sinh sqrt square tan tanh"
    ).split()
}
MOVES = {
    "flip": lambda w: jnp.flip(w, 0),
    "roll": lambda w: jnp.roll(w, 1, 0),
    "cumsum": lambda w: jnp.cumsum(w, 0),
    "sort": lambda w: jnp.sort(w, 0),
    "pad": lambda w: jnp.pad(w, ((1, 0), (0, 0)))[:-1],
    "reshape": lambda w: w.reshape(8, 6).reshape(6, 8),
    "halves": lambda w: jnp.concatenate([w[:3], w[3:]]),
    "fft": lambda w: jnp.fft.fft(w, axis=0).real,
    "where": lambda w: jnp.where(w > 0, w, 0.5 * w),
    "mean": lambda w: jnp.broadcast_to(w.mean(0), w.shape),
    "scan": lambda w: lax.scan(lambda c, row: (c, row), 0.0, w)[1],
    "cond": lambda w: lax.cond(w.sum() > 0, lambda a: a, lambda a: 2 * a, w),
    "while": lambda w: lax.fori_loop(0, 2, lambda i, a: a * 2, w),
}


@pytest.mark.long
@given(
    st.lists(st.sampled_from([*UNARY, *MOVES]), min_size=1, max_size=3),
    st.booleans(),
)
def test_whatever_becomes_of_a_parameter_it_is_listed_and_offered_only_if_zeros_stay(
    names, multiplied
):
    """Over functions of the primitives of `jax.lax`."""
    chain = [(UNARY | MOVES)[name] for name in names]

    def change(w):
        for one in chain:
            w = one(w)
        return w

    def fn(p, x):
        w = change(p["w"])
        hidden = x @ w if multiplied else x @ jnp.ones((6, 8)) * w.sum()
        return relu(hidden) @ p["o"]

    units = bb.trace(fn, P, X)
    where = [
        path
        for part in (units.paths, dict(units.problems), dict(units.others))
        for path in part
    ]
    assert sorted(where) == ["o", "w"]
    if "w" in units.paths:
        zero = np.asarray(change(P["w"].at[2].set(0.0)))
        full = np.asarray(change(P["w"]))
        with np.errstate(invalid="ignore"):
            changed = ~((zero == full) | (np.isnan(zero) & np.isnan(full)))
        assert (zero[changed] == 0).all()  # each edge acts where it stands, or is 0
