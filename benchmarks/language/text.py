"""WikiText-2 in windows, draws for calibration, and how common tokens are.

The test part is what perplexity is measured on. The validation part gives the sequences
for calibration, and the counts of tokens: a token's bucket says how often it occurs
there.
"""

import gzip
from pathlib import Path
from typing import Any

import numpy as np

LENGTH = 512
# Occurrences in the validation text, a quarter of a million words.
BUCKETS = {"0": 0, "1-9": 9, "10-99": 99, "100-999": 999, "1000+": None}


def read(folder: Path, part: str, tokenizer: Any) -> np.ndarray:
    """The tokens of a part of WikiText-2, "valid" or "test".

    Raises:
      SystemExit: the file is missing.
    """
    path = folder / "text_lm" / f"wikitext2_{part}.txt.gz"
    if not path.is_file():
        raise SystemExit(
            f"expected {path}, found none; pass with --data the folder that holds "
            "text_lm/"
        )
    with gzip.open(path, "rt", encoding="utf8") as file:
        return np.array(tokenizer.encode(file.read()).ids, np.int32)


def windows(tokens: np.ndarray, count: int, length: int = LENGTH) -> np.ndarray:
    """Windows side by side, spread evenly over the text: (count, length).

    Raises:
      SystemExit: the text has fewer.
    """
    whole = tokens[: len(tokens) // length * length].reshape(-1, length)
    if not 1 <= count <= len(whole):
        raise SystemExit(f"expected 1 to {len(whole)} windows, got {count}")
    return whole[np.linspace(0, len(whole) - 1, count).round().astype(int)]


def draw(tokens: np.ndarray, seed: int, count: int, length: int = LENGTH) -> np.ndarray:
    """Sequences that begin anywhere in the text, another seed others."""
    random = np.random.default_rng(seed)
    starts = random.integers(0, len(tokens) - length + 1, count)
    return tokens[starts[:, None] + np.arange(length)[None]]


def bucket_of(counts: np.ndarray) -> np.ndarray:
    """For each token, the number of its bucket."""
    most = [limit for limit in BUCKETS.values() if limit is not None]
    return np.searchsorted(most, counts)


def perplexities(
    nats: np.ndarray, targets: np.ndarray, bucket: np.ndarray
) -> dict[str, dict[str, float]]:
    """Perplexity of all targets and of every bucket, with how many they are.

    Args:
      nats: -log p of every target.
      targets: their tokens.
      bucket: of every token of the vocabulary.
    """
    found = {"all": _one(nats.ravel())}
    of_target = bucket[targets.ravel()]
    for place, name in enumerate(BUCKETS):
        if (here := of_target == place).any():
            found[name] = _one(nats.ravel()[here])
    return found


def _one(nats: np.ndarray) -> dict[str, float]:
    mean = float(nats.mean(dtype=np.float64))
    return {"perplexity": float(np.exp(mean)), "nats": mean, "targets": nats.size}
