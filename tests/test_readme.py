"""What the README and the pages beside the code show, runs.

Every block fenced ```python is executed in order; a block whose first line is
`# continues` goes on in the namespace of the block before it. Blocks fenced
```python no-run are shown only. A comment `<!-- setup` ... `-->` right before a block
gives it definitions that readers need not see.
"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "bbjax").rglob("*.md"))]
_BLOCK = re.compile(
    r"(?:^<!-- setup[ \t]*\n(.*?)^-->[ \t]*\n)?^```python[ \t]*\n(.*?)^```[ \t]*$",
    re.MULTILINE | re.DOTALL,
)


def chains(text: str) -> list[list[tuple[int, str]]]:
    """The blocks of `text` as (line, source), each with those that continue it."""
    found: list[list[tuple[int, str]]] = []
    for match in _BLOCK.finditer(text):
        block = (text.count("\n", 0, match.start(2)), match[2])
        if match[1]:
            found.append([(text.count("\n", 0, match.start(1)), match[1]), block])
        elif found and match[2].lstrip().startswith("# continues"):
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


def test_blocks_are_found_chained_and_left_out():
    text = (
        "a\n```python\nx = 1\n```\n```python no-run\nx = 2\n```\n"
        "```python\n# continues\nx = 3\n```\n```bash\nls\n```\n```python\nx = 4\n```\n"
    )
    assert chains(text) == [
        [(2, "x = 1\n"), (8, "# continues\nx = 3\n")],
        [(15, "x = 4\n")],
    ]


@pytest.mark.skipif(not SHOWN, reason="no page shows a python block that runs")
@pytest.mark.parametrize("page, chain", SHOWN)
def test_block_runs(page, chain, lenient, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "readme"}
    for line, source in chain:
        # The padding gives tracebacks the line numbers of the page.
        exec(compile("\n" * line + source, str(page), "exec"), namespace)
