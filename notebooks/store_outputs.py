"""Runs notebooks in full and stores their outputs in them.

    python notebooks/store_outputs.py [NAME ...]      # or: make notebook-outputs

Without names, all of them are run. Stored are pictures and text; what changes from run
to run without a reason (times of execution, counters) is removed. A hash of the code
is kept beside the outputs, so that a test can tell when they are of other code.
"""

import argparse
import base64
import hashlib
import io
import os
import re
import tempfile
import time
from pathlib import Path

import jupytext
import nbformat
from PIL import Image

FOLDER = Path(__file__).resolve().parent
NAMES = sorted({path.stem for path in FOLDER.glob("[0-9][0-9]_*.*")})
LIMIT = 400_000  # bytes of a notebook with its outputs
ADDRESS = re.compile(r"(github(?:\.com)?)/[\w.-]+/bbjax\b")
LAYOUT = "lines_to_next_cell"  # blank lines of the text form, kept by jupytext
# Not as a user has it: several devices, no pictures, a front end, a quick run.
LEFT_OUT = ("XLA_FLAGS", "MPLBACKEND", "JPY_SESSION_NAME", "BBJAX_SMALL")


def read(name):
    """A notebook of this folder; both of its forms have to be equal."""
    book = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    text = jupytext.read(FOLDER / f"{name}.py", fmt="py:percent")
    forms = [[(c.cell_type, c.source) for c in form.cells] for form in (book, text)]
    if forms[0] != forms[1]:
        raise SystemExit(f"{name}: two forms differ; run jupytext --sync on the newer")
    return book


def fingerprint(book):
    """Of the code, wherever the repository lies."""
    code = [cell.source for cell in book.cells if cell.cell_type == "code"]
    text = ADDRESS.sub(r"\1/OWNER/bbjax", "\n\n".join(code))
    return hashlib.sha256(text.encode()).hexdigest()


def environment():
    """What a kernel gets: this clone first on its path, and a user's settings."""
    env = {k: v for k, v in os.environ.items() if k not in LEFT_OUT}
    path = [str(FOLDER.parent), env.get("PYTHONPATH")]
    return env | {"PYTHONPATH": os.pathsep.join(filter(None, path))}


def execute(book, folder, timeout, **settings):
    """Runs all cells in a folder; a cell that fails raises."""
    import nbclient

    where = {"metadata": {"path": str(folder)}}
    client = nbclient.NotebookClient(
        book, timeout=timeout, kernel_name="python3", resources=where
    )
    client.execute(env=environment() | settings)


def lighter(png):
    """A picture with 256 colours, in base64: the same to the eye, in fewer bytes."""
    image = Image.open(io.BytesIO(base64.b64decode(png)))
    if image.mode == "P":
        return png
    # Of the ways to choose them, this one keeps rare colours: a single red dot.
    few = image.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE)
    file = io.BytesIO()
    few.save(file, "png", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def cleaned(book):
    """The notebook with stable outputs, the hash of its code, and nothing else."""
    for cell in book.cells:
        kept = {k: v for k, v in cell.metadata.items() if k == LAYOUT}
        cell.metadata = nbformat.from_dict(kept)
        if cell.cell_type != "code":
            continue
        cell.execution_count = None
        for output in cell.outputs:
            output.pop("execution_count", None)
            if output.output_type == "execute_result":
                output.execution_count = None
            if "data" in output:
                output.metadata = {}
            if "image/png" in output.get("data", ()):
                output.data["image/png"] = lighter(output.data["image/png"])
    kernel = book.metadata.kernelspec
    code = {"code": fingerprint(book)}
    book.metadata = nbformat.from_dict({"bbjax": code, "kernelspec": kernel})
    return book


def problems(book):
    """What must not be stored."""
    outputs = [o for cell in book.cells for o in cell.get("outputs", ())]
    found = [f"stderr: {o.text}" for o in outputs if o.get("name") == "stderr"]
    found += [f"error: {o.ename}" for o in outputs if o.output_type == "error"]
    size = len(nbformat.writes(book))
    if size > LIMIT:
        found.append(f"{size} bytes, expected at most {LIMIT}: draw less, or smaller")
    return found


def store(name, timeout):
    """Runs a notebook and writes it with its outputs."""
    book, began = read(name), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        execute(book, folder, timeout)
    if wrong := problems(cleaned(book)):
        raise SystemExit(f"{name}: " + "; ".join(wrong))
    nbformat.write(book, FOLDER / f"{name}.ipynb")
    size = (FOLDER / f"{name}.ipynb").stat().st_size
    print(f"{name}: {time.perf_counter() - began:.0f} s, {size} bytes", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=NAMES, help="notebooks to run")
    parser.add_argument("--timeout", type=int, default=1800, help="seconds a cell")
    options = parser.parse_args()
    for name in options.names:
        store(Path(name).stem, options.timeout)


if __name__ == "__main__":
    main()
