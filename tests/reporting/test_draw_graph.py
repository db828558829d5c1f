"""The picture of the unit graph has the groups and kernels of the graph.

The pictures in the docs are of models of the zoo. To draw them again:

    python -m tests.reporting.test_draw_graph
"""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import jax.numpy as jnp
import pytest

import bbjax as bb
from bbjax.reporting import draw_graph
from tests.support import zoo_shrink

PICTURES = Path(bb.__file__).parent / "shrinking" / "pictures"
SVG = "{http://www.w3.org/2000/svg}"
SHOWN = {"resnet": zoo_shrink.RESNET, "transformer": zoo_shrink.GPT}


def drawn(model):
    return draw_graph(bb.trace(model.fn, model.made(), *model.args))


@pytest.mark.parametrize("name", sorted(SHOWN))
def test_the_docs_show_the_pictures_of_today(name):
    assert (PICTURES / f"{name}.svg").read_text(encoding="utf-8") == drawn(SHOWN[name])


@pytest.mark.parametrize("model", zoo_shrink.HARD, ids=lambda m: m.name)
def test_marks_are_the_axes_that_kernels_make_and_read(model):
    graph = bb.trace(model.fn, model.made(), *model.args).graph
    groups = [g for g in graph if g.having("makes") or g.having("reads")]
    found = ElementTree.fromstring(drawn(model)).findall(f"{SVG}g")
    assert len(found) == len(groups)
    for element, group in zip(found, groups, strict=True):
        marks = [e.get("class") for e in element if e.tag != f"{SVG}line"]
        for role in ("makes", "reads"):
            kernels = {m.path for m in group.having(role)}
            assert sum(role in (m or "").split() for m in marks) == len(kernels)
        kind = "fixed" if group.fixed else "free"
        assert element.find(f"{SVG}line").get("class") == f"line {kind}"
        assert str(group.size) in [t.text for t in element.findall(f"{SVG}text")]


def test_names_are_escaped_and_nothing_to_draw_is_refused(tmp_path):
    params = {"<up>": jnp.ones((3, 8)), "down": jnp.ones((8, 2))}

    def net(p, x):
        return jnp.tanh(x @ p["<up>"]) @ p["down"]

    units = bb.trace(net, params, jnp.ones((5, 3)))
    picture = draw_graph(units, tmp_path / "graph.svg")
    assert (tmp_path / "graph.svg").read_text(encoding="utf-8") == picture
    texts = [t.text for t in ElementTree.fromstring(picture).iter(f"{SVG}text")]
    assert "<up>" in texts
    with pytest.raises(ValueError, match="expected groups of units, got none"):
        draw_graph(bb.Units(()))


if __name__ == "__main__":
    for name, model in SHOWN.items():
        (PICTURES / f"{name}.svg").write_text(drawn(model), encoding="utf-8")
