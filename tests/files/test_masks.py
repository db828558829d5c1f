"""Masks as files, side by side, and as fingerprints."""

import io
import itertools
import json
import os
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import bbjax as bb
from bbjax.files.masks import load_masks, save_masks, saved_kernels
from bbjax.model.checks import on_host
from bbjax.reporting.compare import diff_masks, overlap, overlap_table

UNITS = bb.Units(
    (
        bb.Kernel("Dense_0/kernel", (3, 5), fan_in=(0,), fan_out=(1,), hidden=True),
        bb.Kernel("Dense_1/kernel", (5, 2), fan_in=(0,), fan_out=(1,)),
    )
)
PARAMS = {
    "Dense_0": {"kernel": jnp.ones((3, 5)), "bias": jnp.ones(5)},
    "Dense_1": {"kernel": jnp.ones((5, 2))},
}
MASKS = {
    "Dense_1/kernel": np.arange(10).reshape(5, 2) % 3 == 0,
    "Dense_0/kernel": np.arange(15).reshape(3, 5) % 2 == 0,
}

shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=9)
paths = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
mask_sets = st.dictionaries(paths, hnp.arrays(bool, shapes), min_size=1, max_size=4)
pairs = shapes.flatmap(
    lambda s: st.tuples(hnp.arrays(bool, s), hnp.arrays(bool, s), st.just(s))
)


def saved(masks=MASKS, units=None):
    file = io.BytesIO()
    save_masks(file, masks, units)
    return file.getvalue()


def loaded(data, like=None):
    return load_masks(io.BytesIO(data), like)


def assert_same(mine, theirs):
    assert mine.keys() == theirs.keys()
    for path, mask in theirs.items():
        assert mine[path].dtype == bool
        np.testing.assert_array_equal(mine[path], np.asarray(mask), strict=True)


def parts(data):
    """The entries of a file as numpy reads them; no pickles are allowed."""
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def header_of(data):
    return json.loads(parts(data)["header"].tobytes())


def rewritten(data, save=np.savez, **changes):
    """The file with entries replaced, None to leave one out, a dict for the header."""
    entries = parts(data)
    for name, value in changes.items():
        if isinstance(value, dict):
            text = json.dumps(header_of(data) | value).encode()
            value = np.frombuffer(text, np.uint8)
        entries[name] = value
    file = io.BytesIO()
    save(file, **{k: v for k, v in entries.items() if v is not None})
    return file.getvalue()


# Round trips ---------------------------------------------------------------------
@given(masks=mask_sets)
def test_any_masks_come_back(masks):
    back = loaded(saved(masks), like=masks)
    assert_same(back, masks)
    assert list(back) == sorted(masks)


@given(masks=mask_sets, swap=st.randoms(use_true_random=False))
def test_the_same_masks_give_the_same_bytes_in_any_order(masks, swap):
    order = list(masks)
    swap.shuffle(order)
    assert saved({path: masks[path].copy() for path in order}) == saved(masks)


def test_bytes_hold_no_time(monkeypatch):
    before = saved()
    monkeypatch.setattr("time.time", lambda: 2e9)
    assert saved() == before
    with zipfile.ZipFile(io.BytesIO(before)) as archive:
        assert {info.date_time[0] for info in archive.infolist()} == {1980}


def test_a_file_holds_one_bit_per_weight_that_numpy_reads_alone():
    mask = np.random.rand(100, 80) < 0.3
    data = saved({"w": mask})
    assert len(data) < mask.size / 8 + 1000
    bits = parts(data)["mask/w"]
    assert bits.dtype == np.uint8
    read = np.unpackbits(bits, count=mask.size, bitorder="little").reshape(mask.shape)
    np.testing.assert_array_equal(read, mask)


def test_the_header_says_what_is_in_the_file():
    header = header_of(saved(units=UNITS))
    assert header["format"] == "bbjax.masks"
    assert (header["version"], header["bbjax"]) == (1, bb.__version__)
    assert header["masks"][0] == {
        "path": "Dense_0/kernel",
        "shape": [3, 5],
        "kept": 8,
        "split": [3, 5],
        "roles": ["in", "out"],
    }
    assert "roles" not in header_of(saved())["masks"][0]


def test_masks_of_biases_have_no_roles():
    masks = {**MASKS, "Dense_0/bias": np.ones(5, bool)}
    data = saved(masks, UNITS)
    assert "roles" not in header_of(data)["masks"][0]
    assert_same(loaded(data, like=PARAMS), masks)


def test_masks_of_an_optimizer_state_come_back():
    tx = optax.chain(optax.sgd(0.1), bb.transform(UNITS.select("Dense")))
    masks = bb.masks(tx.init(PARAMS))
    assert_same(loaded(saved(masks, UNITS), like=UNITS.select("Dense")), masks)


def test_sharded_masks_are_gathered():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    mask = np.random.rand(16, 3) < 0.5
    sharded = jax.device_put(mask, NamedSharding(mesh, P("x")))
    assert saved({"w": sharded}) == saved({"w": mask})
    assert diff_masks({"w": sharded}, {"w": jnp.asarray(mask)}).same


# Files ---------------------------------------------------------------------------
@pytest.mark.parametrize("kind", [str, lambda path: path], ids=["str", "path"])
def test_a_path_is_taken_as_it_is(tmp_path, kind):
    path = tmp_path / "masks"
    save_masks(kind(path), MASKS)
    assert [p.name for p in tmp_path.iterdir()] == ["masks"]
    assert_same(load_masks(kind(path)), MASKS)


def test_a_path_has_the_rights_of_any_new_file(tmp_path):
    save_masks(tmp_path / "masks", MASKS)
    (tmp_path / "other").touch()
    modes = {p.stat().st_mode for p in tmp_path.iterdir()}
    assert len(modes) == 1


def test_open_files_are_used_where_they_stand(tmp_path):
    with open(tmp_path / "file", "w+b") as file:
        file.write(b"before")
        save_masks(file, MASKS)
        file.seek(len(b"before"))
        assert_same(load_masks(file), MASKS)


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "masks.npz"
    save_masks(path, MASKS)

    def fail(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        save_masks(path, {"w": np.ones(3, bool)})
    assert [p.name for p in tmp_path.iterdir()] == ["masks.npz"]
    assert_same(load_masks(path), MASKS)


def test_bad_masks_leave_the_old_file(tmp_path):
    path = tmp_path / "masks.npz"
    save_masks(path, MASKS)
    with pytest.raises(TypeError, match="expected a bool mask at 'w', got float32"):
        save_masks(path, {"w": np.ones(3, np.float32)})
    assert_same(load_masks(path), MASKS)


@pytest.mark.parametrize(("mask", "kind"), [(None, "NoneType"), ({"w": 1}, "dict")])
def test_masks_stand_by_whole_paths(tmp_path, mask, kind):
    with pytest.raises(TypeError, match=f"mask at 'mlp', got {kind}; .* whole paths"):
        save_masks(tmp_path / "masks.npz", {"mlp": mask})


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="folder at '.*none' for 'masks.npz'"):
        save_masks(tmp_path / "none" / "masks.npz", MASKS)


def test_a_missing_file_is_the_usual_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_masks(tmp_path / "none.npz")


# What is no set of masks ---------------------------------------------------------
@pytest.mark.parametrize("bad", [[np.ones(3, bool)], {0: np.ones(3, bool)}, 3])
def test_masks_are_by_path(bad):
    with pytest.raises(TypeError, match="expected masks by path, got .*bb.masks"):
        save_masks(io.BytesIO(), bad)


def test_no_mask_is_refused():
    with pytest.raises(ValueError, match="expected at least one mask, got none"):
        save_masks(io.BytesIO(), {})


def test_a_mask_of_another_shape_than_its_kernel_is_not_saved():
    message = r"expected a mask of shape \(3, 5\) for 'Dense_0/kernel', got \(5, 3\)"
    with pytest.raises(ValueError, match=message):
        saved({"Dense_0/kernel": np.ones((5, 3), bool)}, UNITS)


# What is no mask file ------------------------------------------------------------
DATA = saved()
DAMAGED = {
    "empty": (b"", "not a zip file"),
    "text": (b"hello world" * 20, "not a zip file"),
    "cut short": (DATA[: len(DATA) // 2], "not a zip file"),
    "another archive": (
        rewritten(DATA, header=None),
        "no item named 'header.npy'",
    ),
    "another format": (
        rewritten(DATA, header={"format": "x"}),
        "its format is 'x'",
    ),
    "no JSON": (rewritten(DATA, header=np.frombuffer(b"{", np.uint8)), "Expecting"),
    "no format": (
        rewritten(DATA, header=np.frombuffer(b"[1]", np.uint8)),
        "list indices",
    ),
    "a mask missing": (
        rewritten(DATA, **{"mask/Dense_0/kernel": None}),
        "no item named 'mask/Dense_0/kernel.npy'",
    ),
    "bits missing": (
        rewritten(DATA, **{"mask/Dense_0/kernel": np.zeros(1, np.uint8)}),
        r"'Dense_0/kernel' has 1 bytes, its shape \(3, 5\) takes 2",
    ),
    "other bits": (
        rewritten(DATA, **{"mask/Dense_0/kernel": np.zeros(2, np.uint8)}),
        "'Dense_0/kernel' keeps 0 weights, its header 8",
    ),
    "another dtype": (
        rewritten(DATA, **{"mask/Dense_0/kernel": np.zeros(2, np.int8)}),
        "no vector of 2 bytes",
    ),
    "compressed": (rewritten(DATA, save=np.savez_compressed), "is compressed"),
    "no path": (
        rewritten(DATA, header={"masks": [{"path": 3, "shape": [], "kept": 0}]}),
        "a path is no text",
    ),
    "a huge shape": (
        rewritten(
            DATA,
            header={
                "masks": [{"path": "Dense_0/kernel", "shape": [10**30], "kept": 0}]
            },
        ),
        "takes 125",
    ),
    "a negative shape": (
        rewritten(DATA, header={"masks": [{"path": "w", "shape": [-1], "kept": 0}]}),
        "sizes of 'w' are no whole numbers",
    ),
    "another npy version": (DATA.replace(b"NUMPY\1", b"NUMPY\2"), "CRC|npy version"),
}


@pytest.mark.parametrize("data, reason", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_or_foreign_file_is_refused_with_the_reason(data, reason):
    message = f"expected a mask file as bb.save_masks .*damaged.*{reason}.*save the"
    with pytest.raises(ValueError, match=message):
        loaded(data)


def test_an_npy_version_of_the_future_is_refused():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("header.npy", b"\x93NUMPY\2\0")
    with pytest.raises(ValueError, match="'header' is of another npy version"):
        loaded(file.getvalue())


def test_pickles_are_not_read():
    class Bomb:
        def __reduce__(self):
            return (os._exit, (1,))

    file = io.BytesIO()
    np.savez(file, header=np.array([Bomb()], dtype=object))
    with pytest.raises(ValueError, match="damaged or something else"):
        loaded(file.getvalue())


def test_the_name_of_a_damaged_file_is_in_the_message(tmp_path):
    path = tmp_path / "broken.npz"
    path.write_bytes(b"?")
    with pytest.raises(ValueError, match="broken.npz"):
        load_masks(path)
    with open(path, "rb") as file, pytest.raises(ValueError, match="broken.npz"):
        load_masks(file)


def test_a_newer_version_asks_for_an_upgrade():
    data = rewritten(DATA, header={"version": 2, "bbjax": "9.9", "masks": "new"})
    message = "version 1 or older, got .* of version 2, written by bbjax 9.9; upgrade"
    with pytest.raises(ValueError, match=message):
        loaded(data)


@given(
    at=st.integers(0, len(DATA) - 1), bit=st.integers(0, 7), cut=st.integers(0, 4000)
)
def test_a_broken_file_is_refused_or_says_the_same(at, bit, cut):
    broken = bytearray(DATA)
    broken[at] ^= 1 << bit
    for data in (bytes(broken), DATA[:cut] if cut < len(DATA) else DATA):
        try:
            back = loaded(data)
        except ValueError as error:
            assert "mask file" in str(error)
        else:
            assert_same(back, MASKS)


# Fitting a model -----------------------------------------------------------------
FITS = {
    "parameters": PARAMS,
    "shapes": jax.eval_shape(lambda: PARAMS),
    "units": UNITS,
    "a selection": UNITS.select("Dense_1"),
    "masks": {path: jnp.zeros(mask.shape, bool) for path, mask in MASKS.items()},
}


@pytest.mark.parametrize("like", FITS.values(), ids=FITS)
def test_masks_that_fit_are_loaded(like):
    assert_same(loaded(saved(units=UNITS), like), MASKS)


def test_masks_fit_an_nnx_module():
    model = nnx.Linear(3, 5, rngs=nnx.Rngs(0))
    masks = {"kernel": np.ones((3, 5), bool)}
    assert_same(loaded(saved(masks), model), masks)
    with pytest.raises(ValueError, match=r"kernel: shape \(3, 4\) in the file"):
        loaded(saved({"kernel": np.ones((3, 4), bool)}), model)


def turned(kernel):
    return bb.Kernel(kernel.path, kernel.shape, fan_in=(1,), fan_out=(0,))


MISFITS = {
    "parameters": (
        {"Dense_0": {"kernel": jnp.ones((5, 3))}, "other": jnp.ones(2)},
        ["Dense_0/kernel: shape (3, 5) in the file, (5, 3) here"]
        + ["Dense_1/kernel: only in the file"],
    ),
    "masks": (
        {"Dense_0/kernel": np.ones((3, 5), bool), "v": np.ones(1, bool)},
        ["v: missing in the file", "Dense_1/kernel: only in the file"],
    ),
    "units": (
        bb.Units((turned(UNITS.kernels[0]),)),
        [
            "Dense_0/kernel: axes [3, 5] ['in', 'out'] in the file, [3, 5] "
            "['out', 'in'] here",
            "Dense_1/kernel: only in the file",
        ],
    ),
    "a selection": (
        bb.Units(
            (*UNITS.kernels, bb.Kernel("w", (2, 2), fan_in=(0,), fan_out=(1,)))
        ).select("."),
        ["w: missing in the file"],
    ),
}


@pytest.mark.parametrize("like, differences", MISFITS.values(), ids=MISFITS)
def test_masks_that_do_not_fit_are_refused_with_all_differences(like, differences):
    with pytest.raises(ValueError, match="expected masks that fit these") as caught:
        loaded(saved(units=UNITS), like)
    head, *lines = str(caught.value).splitlines()
    assert sorted(line.strip() for line in lines) == sorted(differences)
    plural = "s" * (len(differences) > 1)
    assert f"got {len(differences)} difference{plural};" in head


def test_roles_are_compared_only_where_the_file_knows_them():
    like = bb.Units((turned(UNITS.kernels[0]), UNITS.kernels[1]))
    assert_same(loaded(saved(), like), MASKS)


# Kernels of a file ---------------------------------------------------------------
def test_a_file_knows_the_kernels_it_was_saved_with():
    kernels = saved_kernels(io.BytesIO(saved(units=UNITS)))
    for path in UNITS:
        kernel, own = kernels[path], UNITS[path]
        assert kernel.edge_shape == own.edge_shape and kernel.shape == own.shape
        assert (kernel.in_units, kernel.out_units) == (own.in_units, own.out_units)
    assert saved_kernels(io.BytesIO(saved())) == {}


def test_groups_and_stacks_of_a_file_have_their_units():
    grouped = bb.Kernel(
        *("g", (3, 2, 6)),
        groups=2,
        split=(3, 2, 2, 3),
        roles=("spatial", "in", "group", "out"),
    )
    stack = bb.Kernel("s", (4, 2, 3), stack=(0,), fan_in=(1,), fan_out=(2,))
    masks = {"g": np.ones((3, 2, 6), bool), "s": np.ones((4, 2, 3), bool)}
    found = saved_kernels(io.BytesIO(saved(masks, bb.Units((grouped, stack)))))
    assert (found["g"].in_units, found["g"].out_units) == ((4,), (6,))
    assert found["g"].groups == 2 and found["g"].edge_shape == (2, 2, 3)
    assert found["s"].stack_shape == (4,) and found["s"].edge_count == 6


@pytest.mark.parametrize(
    "changed, reason",
    [
        ({"roles": ["in", "sideways"]}, "has axes .3, 5. in roles .'in', 'sideways'"),
        ({"roles": ["in"]}, "has axes .3, 5. in roles .'in',."),
        ({"split": [3, 4]}, "of .3, 5. has axes .3, 4."),
        ({"split": [3.0, 5.0]}, "has axes .3.0, 5.0. in roles"),
        ({"split": None}, "not iterable"),
    ],
)
def test_axes_that_make_no_kernel_are_refused(changed, reason):
    data = saved(units=UNITS)
    entry = header_of(data)["masks"][0] | changed
    with pytest.raises(ValueError, match=f"damaged or something else.*{reason}"):
        saved_kernels(io.BytesIO(rewritten(data, header={"masks": [entry]})))


# Side by side --------------------------------------------------------------------
@given(pair=pairs)
def test_differences_count_what_numpy_counts(pair):
    a, b, shape = pair
    row = diff_masks({"w": a}, {"w": jnp.asarray(b)})["w"]
    assert (row.shape_a, row.shape_b, row.problem) == (shape, shape, "")
    assert (row.kept_a, row.kept_b) == (a.sum(), b.sum())
    assert (row.both, row.flipped) == ((a & b).sum(), (a != b).sum())
    assert diff_masks({"w": a}, {"w": b}).same == np.array_equal(a, b)


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
