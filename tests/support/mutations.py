"""Loads files with random changes under a limit of memory, and counts what happens.

    python -m tests.support.mutations COUNT

Each file loads exactly what it held before, or is refused by the documented error. Some
changes are of any bytes; others are of the fields of a header, whose checksums are then
made anew, so that they get past these. Anything else that happens is printed as a
failure: another error, a long message, other content, or memory beyond the limit.
"""

import collections
import copy
import io
import json
import random
import resource
import sys
import zipfile
import zlib
from pathlib import Path

import jax
import numpy as np

import bbjax as bb
from tests.support.files import MASKS, PARAMS, UNITS, saved
from tests.support.fixtures import FIXTURES
from tests.support.memory import MB, peak

ROOM = 256 * MB  # of memory beyond what the libraries take
LONGEST = 2000
HOSTILE = [
    *(
        None,
        True,
        False,
        -1,
        0,
        1,
        7,
        2**31,
        2**63,
        10**30,
        0.5,
        1e308,
        "",
        "x",
        "\x1b[2J",
    ),
    *("in", "float", "uint32", "O", "V8", "i4,i4", "float64", "a/" * 5000, "é" * 3000),
    *([], [0], [-1], [2**40], [1] * 70, [[1]], ["in", "out"], {}, {"w": 1}, {"": None}),
    *([10**9, 10**9], [2**62, 0], ["in"], [True], [3.0], "mlp/up:mask", "mlp/up"),
]


def originals():
    """Files of every kind and version, by name."""
    files = {p.name: p.read_bytes() for p in sorted(FIXTURES.iterdir())}
    odd = {"k": jax.random.key(0), "n": 3, "x": 0.5, "c": np.ones(3, np.complex64)}
    big = {"w": np.zeros((64, 64), np.float32)}
    files["units"] = saved(PARAMS, MASKS, UNITS.select("."), {"step": 7})
    files["dense"] = saved(PARAMS, MASKS, UNITS, packed=False)
    files["odd"] = saved(odd, extra={"a": [1, {"b": None}]})
    files["empty"] = saved(big, {"w": np.zeros((64, 64), bool)})
    masks = io.BytesIO()
    bb.save_masks(masks, MASKS, UNITS)
    files["masks"] = masks.getvalue()
    return files


# Changes -------------------------------------------------------------------------
def of_bytes(data, rng):
    """Some bytes flipped, replaced, left out, added, repeated, or the end cut off."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5, 30))):
        at = rng.randrange(len(data) or 1)
        some = slice(at, at + rng.choice((1, 2, 8, 100)))
        kind = rng.randrange(7)
        if kind == 0 and data:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[some] = rng.randbytes(len(data[some]))
        elif kind == 2:
            del data[some]
        elif kind == 3:
            data[at:at] = rng.randbytes(rng.choice((1, 8, 100)))
        elif kind == 4:
            data[at:at] = data[some] * rng.choice((1, 3, 50))
        elif kind == 5:
            del data[at:]
        else:
            digits = str(rng.choice((0, 2**31, 2**63, 10**40, "9" * 5000))).encode()
            data[some] = digits
    return bytes(data)


def of_json(value, rng):
    """One place of a JSON value changed, left out or added."""
    places, todo = [], [value]
    while todo:
        inside = todo.pop()
        if isinstance(inside, dict | list):
            keys = list(inside) if isinstance(inside, dict) else range(len(inside))
            places += [(inside, key) for key in keys]
            todo += [inside[key] for key in keys]
    if not places:
        return
    inside, key = rng.choice(places)
    kind = rng.randrange(5)
    if kind == 0:
        del inside[key]
    elif kind == 1 and isinstance(inside, dict):
        name = rng.choice(("more", "", "budget", "key", "number", "w"))
        inside[name] = copy.deepcopy(rng.choice(HOSTILE))
    elif kind == 2 and isinstance(inside, list):
        inside.append(copy.deepcopy(inside[key]))
    elif kind == 3 and type(inside[key]) is int:
        inside[key] += rng.choice((-1, 1, 2**20, 2**40))
    else:
        inside[key] = copy.deepcopy(rng.choice(HOSTILE))


def of_fields(data, rng):
    """Fields of the header of a safetensors file changed, its checksum made anew."""
    length = int.from_bytes(data[:8], "little")
    layout = json.loads(data[8 : 8 + length])
    header = json.loads(layout["__metadata__"]["bbjax"])
    if rng.random() < 0.2:
        of_json(layout, rng)
    else:
        for _ in range(rng.choice((1, 1, 2, 4))):
            of_json(header, rng)
        header.pop("crc32", None)
        header["crc32"] = zlib.crc32(json.dumps(header, sort_keys=True).encode())
        layout["__metadata__"]["bbjax"] = json.dumps(header, sort_keys=True)
    text = json.dumps(layout, ensure_ascii=False).encode("utf-8", "replace")
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def of_archive(data, rng):
    """One array of a numpy archive changed, the checksums of the archive made anew."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(file, "w") as new:
        names = old.namelist()
        chosen = rng.choice(names)
        for name in names:
            content = old.read(name)
            if name == chosen and name == "header.npy" and rng.random() < 0.7:
                header = json.loads(content[128:])
                of_json(header, rng)
                text = np.frombuffer(json.dumps(header).encode(), np.uint8)
                part = io.BytesIO()
                np.save(part, text)
                content = part.getvalue()
            elif name == chosen:
                content = of_bytes(content, rng)
            new.writestr(name, content)
    return file.getvalue()


# What happens --------------------------------------------------------------------
def content(loaded):
    """All arrays and masks of a file, as bytes."""
    if isinstance(loaded, dict):
        return sorted(map(packed, loaded.values()))
    leaves = [
        np.asarray(jax.random.key_data(x) if hasattr(x, "_impl") else x)
        for x in jax.tree.leaves(loaded.params)
    ]
    return sorted(a.tobytes() for a in leaves) + sorted(
        map(packed, loaded.masks.values())
    )


def packed(mask):
    """As files have it: a shape that fits the same bits, fits the file."""
    return np.packbits(mask, bitorder="little").tobytes()


def outcome(data, load, right):
    """What loading does, in words; those of a failure begin with `FAILED`."""
    try:
        found = load(io.BytesIO(data))
    except ValueError as error:
        message = str(error)
        if len(message) >= LONGEST or not message.startswith("expected "):
            return f"FAILED: a message of {len(message)} characters: {message[:300]}"
        if not message.isprintable():
            return f"FAILED: a message with control characters: {message[:300]!r}"
        return "refused"
    except BaseException as error:
        return f"FAILED: {type(error).__name__}: {str(error)[:300]}"
    return "loaded" if content(found) == right else "FAILED: other content"


def main(count):
    files = originals()
    loaders = {
        name: bb.load_masks if name.startswith("masks") else bb.load for name in files
    }
    right = {
        name: content(loaders[name](io.BytesIO(data))) for name, data in files.items()
    }
    start = peak()
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    counts, failures = collections.Counter(), []
    for number in range(count):
        rng = random.Random(number)
        name = rng.choice(sorted(files))
        change = of_archive if name.endswith("npz") else of_fields
        change = of_bytes if rng.random() < 0.5 else change
        found = outcome(change(files[name], rng), loaders[name], right[name])
        counts[found.split(":")[0]] += 1
        if found.startswith("FAILED"):
            failures.append(f"{number}, {name}, {change.__name__}: {found}")
    grown = (peak() - start) // MB
    print(json.dumps({"counts": counts, "failures": failures[:20], "grown": grown}))


if __name__ == "__main__":
    main(int(sys.argv[1]))
