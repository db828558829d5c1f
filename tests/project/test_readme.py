"""What the README and the pages beside the code show, runs and is true.

Every block fenced ```python runs alone, in a folder of its own; a block whose first
line is `# continues` goes on in the namespace of the block before it. Blocks fenced
```python no-run are shown only. Figures on the front page stand between marks and are
written from JSON; links lead somewhere.
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "bbjax").rglob("*.md"))]
_BLOCK = re.compile(r"^```python[ \t]*\n(.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)
# Figures that somebody measured: with a spread, a percent sign or a unit of time.
_MEASURED = re.compile(r"±|\d ?%|\d (?:minutes?|seconds?|ms|times)\b")


def chains(text: str) -> list[list[tuple[int, str]]]:
    """The blocks of `text` as (line, source), each with those that continue it."""
    found: list[list[tuple[int, str]]] = []
    for match in _BLOCK.finditer(text):
        block = (text.count("\n", 0, match.start(1)), match[1])
        if found and match[1].lstrip().startswith("# continues"):
            found[-1].append(block)
        else:
            found.append([block])
    return found


SHOWN = [
    pytest.param(page, chain, id=f"{page.relative_to(ROOT)}:{chain[0][0]}")
    for page in PAGES
    if page.exists()
    for chain in chains(page.read_text(encoding="utf-8"))
]
front_page = pytest.mark.skipif(not README.exists(), reason="the README is not here")


def test_blocks_are_found_chained_and_left_out():
    text = (
        "a\n```python\nx = 1\n```\n```python no-run\nx = 2\n```\n"
        "```python\n# continues\nx = 3\n```\n```bash\nls\n```\n```python\nx = 4\n```\n"
    )
    assert chains(text) == [
        [(2, "x = 1\n"), (8, "# continues\nx = 3\n")],
        [(15, "x = 4\n")],
    ]


@pytest.mark.sampled(1)
@pytest.mark.skipif(not SHOWN, reason="no page shows a python block that runs")
@pytest.mark.parametrize("page, chain", SHOWN)
def test_block_runs(page, chain, lenient, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "readme"}
    for line, source in chain:
        # The padding gives tracebacks the line numbers of the page.
        exec(compile("\n" * line + source, str(page), "exec"), namespace)


def test_nothing_is_hidden_from_readers():
    for page in PAGES:
        assert "<!-- setup" not in page.read_text(encoding="utf-8"), page


# Front page ----------------------------------------------------------------------
@front_page
def test_the_front_page_is_short_and_its_code_narrow():
    text = README.read_text(encoding="utf-8")
    assert len(text) <= 14_000
    for block in re.findall(r"^```\w+\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            assert len(line) <= 88, line


@pytest.mark.long
@front_page
def test_the_first_block_is_short_and_prints_what_is_shown(
    capsys, lenient, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    text = README.read_text(encoding="utf-8")
    first = _BLOCK.search(text)
    assert len(first[1].splitlines()) <= 15
    shown = re.match(r"\n\n((?: {4}.+\n)+)", text[first.end() :])[1]
    exec(compile(first[1], str(README), "exec"), {"__name__": "readme"})
    printed = capsys.readouterr().out
    number = re.compile(r"\d+\.\d+|\d+")
    assert number.sub("#", printed.strip()) == number.sub("#", shown.strip())
    for got, told in zip(number.findall(printed), number.findall(shown), strict=True):
        # Losses differ in the last digits between machines; counts do not.
        assert float(got) == pytest.approx(float(told), rel=0.05 if "." in told else 0)


@front_page
def test_a_saved_model_is_loaded_by_a_process_that_knows_its_function_alone(
    lenient, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    blocks = [source for _, chain in _front() for source in chain]
    (block,) = [source for source in blocks if "# In a new process" in source]
    before, after = block.split("# In a new process")
    exec(compile(before, "before", "exec"), {})
    known = [
        part
        for part in ast.parse(before).body
        if isinstance(part, ast.Import | ast.FunctionDef)
    ]
    namespace = {}
    exec(compile(ast.Module(known, []), "known", "exec"), namespace)
    exec(compile("#" + after, "after", "exec"), namespace)
    assert namespace["params"]["up"].shape == (8, 16)
    assert namespace["y"].shape == (64, 8)


def _front():
    text = README.read_text(encoding="utf-8")
    return [(chain, [source for _, source in chain]) for chain in chains(text)]


def test_every_page_says_what_the_results_say():
    front = pytest.importorskip("benchmarks.front")
    for page, parts in front.PAGES.items():
        text = page.read_text(encoding="utf-8")
        made = {name: make() for name, make in parts.items()}
        assert front.written(text, made) == text, "run `python -m benchmarks.front`"


@front_page
def test_every_figure_of_the_front_page_comes_from_results():
    front = pytest.importorskip("benchmarks.front")
    pages = pytest.importorskip("benchmarks.common.text")
    text = README.read_text(encoding="utf-8")
    for name in front.PAGES[README]:
        begin, end = map(re.escape, pages.marks(name))
        text, count = re.subn(f"{begin}.*?{end}", "", text, flags=re.DOTALL)
        assert count == 1
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    assert not (found := _MEASURED.findall(text)), found


def test_results_on_the_front_page_name_their_commit():
    front = pytest.importorskip("benchmarks.front")
    found = {"demo": front.saved("demo_digits")["commit"]}
    speed = front.saved("speed_cpu")["parts"]
    for part, rows in front.speed_rows(speed).items():
        found |= {f"{part}, {label}": row["commit"] for label, row in rows.items()}
    assert len(found) >= 9
    for name, commit in found.items():
        assert re.fullmatch(r"[0-9a-f]{7,}\+?", commit), name


def test_results_of_something_else_than_the_demo_are_refused(tmp_path):
    front = pytest.importorskip("benchmarks.front")
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(SystemExit, match=r"without overview.png, benefit.png; run"):
        front.take_over(tmp_path)


def test_a_part_that_has_no_place_or_two_is_refused():
    front = pytest.importorskip("benchmarks.front")
    pages = pytest.importorskip("benchmarks.common.text")
    begin, end = pages.marks("cost")
    page = f"a\n{begin}\nold\n{end}\nb"
    assert front.written(page, {"cost": "new"}) == f"a\n{begin}\nnew\n{end}\nb"
    for text in ("none", page + page):
        with pytest.raises(ValueError, match="once, got"):
            front.written(text, {"cost": "new"})


# Links ---------------------------------------------------------------------------
LINKED = [
    *PAGES,
    *(ROOT / name for name in ("CHANGELOG.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "benchmarks").rglob("*.md")),
]


def anchors(text: str) -> set[str]:
    """What the headings of a page are called in links, as on GitHub."""
    found = set()
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        plain = re.sub(r"[^\w\- ]", "", heading.strip().lower())
        found.add(plain.replace(" ", "-"))
    return found


def test_headings_are_linked_as_on_github():
    text = "# The paper's claims, repeated\n\n## `bb.trace`: where\n"
    assert anchors(text) == {"the-papers-claims-repeated", "bbtrace-where"}


@pytest.mark.parametrize("page", LINKED, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    if not page.exists() or not (ROOT / "benchmarks").is_dir():
        pytest.skip("the page, or what it links to, is not here")
    text = page.read_text(encoding="utf-8")
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target.read_text(encoding="utf-8")), link
