#!/usr/bin/env python3
"""Train a language model on text at hand, and export it as decoders are exported.

    python tools/build_language_model.py FOLDER --text /usr/share/doc /usr/share/man

The model is a Llama (rotary places, grouped heads, gated layers, one table for input and output) of
105 MB. It is trained for so many minutes on the docstrings of Python's standard library and on the
files that ``--text`` names; when it is called again, it goes on where it stopped, and the schedule
of its steps starts anew. Every twentieth document is held out.

In the folder: ``tokenizer.json``, ``train.txt`` and ``test.txt`` (one text a line), ``dynamo/``
(torch's exporter: `past_key_values` in and out), ``genai/`` (onnxruntime-genai's builder:
GroupQueryAttention, a folder as its runtime opens it) and ``int4/`` (the same builder's codes).

Needs `pip install torch transformers onnxscript onnxruntime-genai`. A rebuild is another model:
minutes are no number of steps.
"""

# mypy: allow-subclassing-any, allow-untyped-calls, allow-untyped-decorators
# (torch is unknown to mypy where it is not installed, and partly untyped where it is)

from __future__ import annotations

import argparse
import ast
import gzip
import hashlib
import json
import math
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

SEED = 2026
HELD_OUT = 20  # one document of so many
LINES = 400  # of held-out text that are written
END = "<|endoftext|>"
_ROFF = re.compile(r'^[.\'].*$|\\f.|\\[&/|,^]|\\\(..|\\-|\\"', re.MULTILINE)
_TAGS = re.compile(r"<[^>]{1,200}>")
_SUFFIXES = {".md", ".txt", ".rst", ".html", ".py", ".gz", ""}
_LONGEST = 400_000  # characters of one file that are read


class Size(NamedTuple):
    """How large a model is, and how it is trained."""

    words: int
    width: int
    layers: int
    heads: int
    groups: int
    inner: int
    context: int
    rows: int
    rate: float


SIZE = Size(16_000, 512, 6, 8, 2, 1536, 128, 8, 1.2e-3)


def texts_of(file: Path) -> Iterator[str]:
    """The paragraphs of a file, without its markup: docstrings, manual pages, pages, plain text."""
    try:
        data = file.read_bytes()
        data = gzip.decompress(data) if file.suffix == ".gz" else data
        text = data[:_LONGEST].decode()
    except (OSError, EOFError, UnicodeDecodeError):
        return
    if file.suffix == ".py":
        try:
            nodes = [*ast.walk(ast.parse(text))]
        except (SyntaxError, ValueError):
            return
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
        text = "\n\n".join(ast.get_docstring(n) or "" for n in nodes if isinstance(n, kinds))
    elif re.fullmatch(r".*\.\d\w*(\.gz)?", file.name):
        text = _ROFF.sub("", text)
    elif file.suffix == ".html":
        text = _TAGS.sub("", text)
    for part in re.split(r"\n\s*\n", text):
        line = " ".join(part.split())
        letters = sum((c.isalpha() and c.isascii()) or c == " " for c in line)
        if len(line) >= 60 and letters > 0.8 * len(line):
            yield line


def corpus(folders: list[str]) -> tuple[list[str], list[str]]:
    """Texts to train on, and texts held out; no paragraph is there twice."""
    library = Path(sysconfig.get_path("stdlib"))
    files = [file for file in sorted(library.rglob("*.py")) if "site-packages" not in file.parts]
    for folder in folders:
        files += [f for f in sorted(Path(folder).rglob("*")) if f.suffix in _SUFFIXES]
    seen: set[bytes] = set()
    parts: tuple[list[str], list[str]] = ([], [])
    for file in files:
        foreign = re.search(r"/man/(?!man)|changelog|copyright|NEWS|license", str(file), re.I)
        if foreign or not file.is_file() or file.is_symlink():
            continue
        number = int.from_bytes(hashlib.sha256(file.name.encode()).digest()[:4], "big")
        for text in texts_of(file):
            digest = hashlib.sha256(text.lower().encode()).digest()
            if digest not in seen:
                seen.add(digest)
                parts[number % HELD_OUT == 0].append(text)
    return parts


def tokenizer_of(texts: list[str], words: int) -> Tokenizer:
    """A byte-level BPE tokenizer of so many tokens."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=words,
            special_tokens=[END],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    return made


def stream(tokenizer: Tokenizer, texts: list[str]) -> np.ndarray:
    """All texts as one row of tokens, each with its end."""
    end = tokenizer.token_to_id(END)
    return np.concatenate([[*e.ids, end] for e in tokenizer.encode_batch(texts)]).astype(np.int64)


def train(model: Any, tokens: np.ndarray, size: Size, minutes: float) -> None:
    """Train for so many minutes: AdamW, warmed up, cooled down linearly."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}],
        lr=size.rate, betas=(0.9, 0.98),
    )  # fmt: skip
    rng = np.random.default_rng(int(time.time()))
    started, step, shown = time.monotonic(), 0, 0.0
    while (done := (time.monotonic() - started) / (60 * minutes)) < 1:
        starts = rng.integers(0, len(tokens) - size.context - 1, size.rows)
        batch = torch.from_numpy(np.stack([tokens[s : s + size.context + 1] for s in starts]))
        for group in optimizer.param_groups:
            group["lr"] = size.rate * min(1.0, (step + 1) / 50) * (1 - done)
        with torch.autocast("cpu", torch.bfloat16, enabled=True):
            logits = model(input_ids=batch[:, :-1], use_cache=False).logits
        loss = nn.functional.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        if time.monotonic() - shown > 15:
            shown = time.monotonic()
            print(f"step {step}, {100 * done:.0f} %: {loss.item():.3f} nats", flush=True)


@torch.no_grad()
def perplexity(model: Any, tokens: np.ndarray, context: int) -> float:
    """Of tokens that the model has not seen."""
    total, count = 0.0, min(40, (len(tokens) - 1) // context)
    for start in range(0, count * context, context):
        row = torch.from_numpy(tokens[start : start + context + 1])[None]
        logits = model(input_ids=row[:, :-1], use_cache=False).logits
        total += nn.functional.cross_entropy(logits[0].float(), row[0, 1:]).item()
    return math.exp(total / count)


class Decoding(nn.Module):
    """The model with its cache as plain tensors in and out."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Any, attention_mask: Any, past_key_values: Any) -> Any:
        """Scores, and the cache: [B, H, P + T, D] for each layer's keys and values."""
        cache = DynamicCache(past_key_values)
        found = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            past_key_values=cache,
            use_cache=True,
        )
        caches = [(layer.keys, layer.values) for layer in found.past_key_values.layers]
        return found.logits, caches


def export_dynamo(model: Any, size: Size, path: Path) -> None:
    """As torch's exporter writes decoders: new tokens, mask, past in; scores and present out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    batch, new, past = (torch.export.Dim.DYNAMIC for _ in range(3))
    head = size.width // size.heads
    cache = [
        (torch.zeros(2, size.groups, 3, head), torch.zeros(2, size.groups, 3, head))
        for _ in range(size.layers)
    ]
    dims = {0: batch, 2: past}
    names = [f"{n}.{kind}" for n in range(size.layers) for kind in ("key", "value")]
    torch.onnx.export(
        Decoding(model).eval(),
        (torch.zeros(2, 4, dtype=torch.long), torch.ones(2, 7, dtype=torch.long), cache),
        str(path), dynamo=True, external_data=False, opset_version=20,
        dynamic_shapes=({0: batch, 1: new}, {0: batch, 1: past}, [(dims, dims)] * size.layers),
        input_names=["input_ids", "attention_mask", *(f"past_key_values.{n}" for n in names)],
        output_names=["logits", *(f"present.{n}" for n in names)],
    )  # fmt: skip


def export_genai(checkpoint: Path, folder: Path, precision: str = "fp32") -> None:
    """As onnxruntime-genai's own builder writes it, for its own runtime."""
    places = ["-i", str(checkpoint), "-o", str(folder), "-c", str(folder / "cache")]
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-m", "", *places]
    subprocess.run([*command, "-p", precision, "-e", "cpu"], check=True)


def main() -> None:
    """Train, and export."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--text", nargs="*", default=[], help="folders of further texts")
    parser.add_argument("--minutes", type=float, default=6.0)
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    size = SIZE
    torch.manual_seed(SEED)
    checkpoint = folder / "checkpoint"
    if checkpoint.exists():
        model = LlamaForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        config = LlamaConfig(
            vocab_size=size.words, hidden_size=size.width, intermediate_size=size.inner,
            num_hidden_layers=size.layers, num_attention_heads=size.heads,
            num_key_value_heads=size.groups, max_position_embeddings=1024,
            tie_word_embeddings=True, bos_token_id=0, eos_token_id=0, pad_token_id=0,
        )  # fmt: skip
        model = LlamaForCausalLM(config)
        trained, held = corpus(arguments.text)
        print(f"{len(trained):,} texts, {len(held):,} held out", flush=True)
        tokenizer = tokenizer_of(trained, size.words)
        tokenizer.save(str(folder / "tokenizer.json"))
        np.save(folder / "tokens.npy", stream(tokenizer, trained))
        np.save(folder / "held.npy", stream(tokenizer, held))
        for name, texts in (("train", trained), ("test", held)):
            chosen = texts[:: max(1, len(texts) // LINES)][:LINES]
            (folder / f"{name}.txt").write_text("\n".join(chosen) + "\n")
    tokens, unseen = (np.load(folder / f"{name}.npy") for name in ("tokens", "held"))
    print(f"{model.num_parameters():,} parameters, {len(tokens):,} tokens", flush=True)
    model.train()
    train(model, tokens, size, arguments.minutes)
    model.eval()
    model.save_pretrained(checkpoint)
    shutil.copy(folder / "tokenizer.json", checkpoint)
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": END, "eos_token": END}
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(kind))
    print(f"perplexity {perplexity(model, unseen, size.context):.1f} of {size.words}", flush=True)
    export_dynamo(model, size, folder / "dynamo" / "model.onnx")
    export_genai(checkpoint, folder / "genai")
    export_genai(checkpoint, folder / "int4", "int4")


if __name__ == "__main__":
    main()
