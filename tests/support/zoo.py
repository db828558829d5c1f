"""The model zoo: small models of every kind that users bring, with their oracles.

    for case in zoo.CASES: model = case.make(); model.fn(model.params, *model.args)

`case.layout` says which axes of which kernels are units, `case.oracle` what their units
do. Sizes are tiny and distinct, so that a swapped axis is a wrong shape.
"""

import functools

import bbjax as bb
from tests.support import zoo_conv, zoo_linen, zoo_modules, zoo_raw
from tests.support.zoo_case import Case, Model

__all__ = ["CASES", "Case", "Model", "built", "expected", "named"]

CASES: tuple[Case, ...] = (
    *zoo_raw.CASES,
    *zoo_conv.CASES,
    *zoo_linen.CASES,
    *zoo_modules.CASES,
)


def named(name: str) -> Case:
    """The case of that name."""
    return next(case for case in CASES if case.name == name)


@functools.cache
def built(name: str) -> tuple[Model, bb.Units]:
    """A model and its trace, made once; a module with state is shared, then."""
    model = named(name).make()
    return model, bb.trace(model.fn, model.params, *model.args)


@functools.cache
def expected(name: str) -> dict:
    """What the oracle of a case says of `built(name)`."""
    model, _ = built(name)
    return named(name).oracle(model.params, *model.args)
