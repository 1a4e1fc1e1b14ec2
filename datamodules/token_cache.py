"""A corpus as one long array of token ids on disk: tokenized once, memory-mapped ever after.

Text is read, tokenized and written in pieces, so that a corpus may be larger than memory. The cache takes its final name only
when it is whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray
from rich.progress import Progress

from lit_rl.files import new_folder
from lit_rl.options import first_line
from lit_rl.text.encoding import encode_bare, encode_inside

FORMAT = 2
"""Version of the way from text to tokens; tokens of another version are not read."""
BATCH_CHARACTERS = 2**20
"""Characters of text that are tokenized at a time."""


class Piece(NamedTuple):
    """A stretch of a document."""

    text: str
    first: bool
    """The document begins with this piece."""
    last: bool
    """The document ends with this piece."""
    done: float
    """Share of the corpus that is read after this piece, from 0 to 1."""
    place: str
    """Name of the piece in an error message."""


class TokenCache(NamedTuple):
    """The tokens of a corpus, memory-mapped, document after document."""

    ids: NDArray[np.unsignedinteger]
    """(M) token ids."""
    ends: NDArray[np.int64]
    """(D) place after the last token of each document."""
    hashes: NDArray[np.uint64]
    """(D) first 64 bits of each document's hash: equal for equal texts, in any run."""


def cache_key(source: Any, tokenizer: Any) -> str:
    """Name of a source's tokens under a tokenizer; the source is anything that JSON holds."""
    # The backend's JSON holds merges and pre-tokenizer too: equal vocabularies may cut a text differently.
    backend = getattr(tokenizer, "backend_tokenizer", None)
    parts = json.loads(backend.to_str()) if backend is not None else tokenizer.get_vocab()
    # Settings of the call that came last, and not of the tokenizer.
    rules = {name: part for name, part in parts.items() if backend is None or name not in ("truncation", "padding")}
    return hashlib.sha256(json.dumps([FORMAT, source, rules], sort_keys=True).encode()).hexdigest()[:24]


def read_cache(folder: Path) -> TokenCache:
    """Open the cache that `write_cache` wrote."""
    # The suffix is the dtype: raw ids have no header that says it.
    (file,) = folder.glob("ids.*")
    ends, hashes = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("ends", "hashes"))
    return TokenCache(np.memmap(file, dtype=file.suffix[1:], mode="r"), ends, hashes)


def write_cache(folder: Path, pieces: Iterable[Piece], tokenizer: Any) -> None:
    """Tokenize a corpus and write it to a new folder. If the folder exists, nothing is written.

    Raises:
        ValueError: if the tokenizer cannot encode a text, or there is no text.
    """
    if folder.is_dir():
        return
    # Another process may finish first, and others may have its cache open.
    with new_folder(folder, keep_existing=True) as new:
        tokens = _write(new, pieces, tokenizer)
    rank_zero_info(f"Corpus: {tokens:,} tokens in {folder}")


def _write(folder: Path, pieces: Iterable[Piece], tokenizer: Any) -> int:
    """Fill the three files of a cache, and return the number of tokens."""
    # By the largest id: a vocabulary that leaves ids out has fewer tokens.
    dtype = "uint16" if max(tokenizer.get_vocab().values()) < 2**16 else "uint32"
    # Ends and hashes fit in memory: one number each per document.
    ends: list[int] = []
    hashes: list[int] = []
    tokens, digest = 0, hashlib.blake2b(digest_size=8)
    with (folder / f"ids.{dtype}").open("wb") as file, Progress(transient=True) as progress:
        bar = progress.add_task("Tokenizing", total=1.0)
        for batch in _batches(pieces):
            for piece, ids in zip(batch, _encode(batch, tokenizer), strict=True):
                np.array(ids, dtype=dtype).tofile(file)
                tokens += len(ids)
                # Over the text, not the ids: a document is in the same set under any tokenizer.
                digest.update(piece.text.encode())
                if piece.last:
                    ends.append(tokens)
                    hashes.append(int.from_bytes(digest.digest(), "big"))
                    digest = hashlib.blake2b(digest_size=8)
            progress.update(bar, completed=batch[-1].done)
    # An empty file cannot be memory-mapped.
    if not tokens:
        raise ValueError("data.path: the corpus is empty: no text was found in it; give a file that holds some.")
    np.save(folder / "ends.npy", np.array(ends, dtype=np.int64))
    np.save(folder / "hashes.npy", np.array(hashes, dtype=np.uint64))
    return tokens


def _batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Batches of pieces, of about `BATCH_CHARACTERS` each, which a tokenizer works on in parallel."""
    batch: list[Piece] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece.text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _encode(batch: list[Piece], tokenizer: Any) -> list[list[int]]:
    try:
        # Without BOS: pieces of a document are joined, and windows begin with it.
        rows = encode_bare([piece.text for piece in batch], tokenizer)
        return [ids if piece.first else encode_inside(piece.text, tokenizer) for piece, ids in zip(batch, rows, strict=True)]
    except Exception as error:  # the tokenizers library raises nothing narrower
        places = batch[0].place if len(batch) == 1 else f"{batch[0].place} to {batch[-1].place}"
        raise ValueError(
            f"data.path: {places}: the tokenizer cannot encode this text ({first_line(error)}); "
            "use one that knows its characters."
        ) from error
