"""Next-token entropy of a model at each token of a text, in nats: low at easy positions, high at hard ones.

RPT (arXiv 2506.08007) takes it over the 16 most likely tokens of a proxy model, here renormalised, so that it lies between 0
and ln 16.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lit_rl.kernels.logprobs import LOGITS_PER_CHUNK, distribution, entropy
from lit_rl.models.policy import Policy
from lit_rl.text.windows import Windows
from lit_rl.types import TokenBatch


def next_token_entropy(logits: Tensor, top_k: int) -> Tensor:
    """Entropy of the next token: (M, V) logits -> (M) nats in float32.

    Args:
        logits: (M, V).
        top_k: entropy over that many most likely tokens, renormalised; 0 takes all.
    """
    if 0 < top_k < logits.shape[1]:
        # (M, top_k); `distribution` renormalises
        logits = logits.topk(top_k, dim=1).values
    return entropy(distribution(logits)).float()


def window_entropies(
    policy: Policy, windows: Windows, top_k: int = 0, batch_tokens: int = 16_384, first: int = 0
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Entropies of the targets of all windows from ``first`` on, some windows at a time.

    A target's entropy is that of the policy's next-token distribution, in eval mode, after the window's tokens before it.

    Args:
        policy: the model that is asked, on the device to use.
        windows: windows that it reads.
        top_k: entropy over that many most likely tokens, renormalised; 0 takes all.
        batch_tokens: tokens of one forward pass, padding included; a longer window has a pass to itself.
        first: number of the first window.

    Yields:
        Number of the window after these ones, and the entropies of their targets in nats, in order.
    """
    policy.eval()  # dropout would make the entropies random
    while first < len(windows):
        stop = _batch_end(windows, first, batch_tokens)
        yield stop, _entropies(policy, _batch(windows, first, stop), top_k)
        first = stop


def _batch_end(windows: Windows, first: int, batch_tokens: int) -> int:
    """Number of the window after the last one that fits into a batch."""
    stop, width = first, 0
    while stop < len(windows):
        width = max(width, len(windows.opening) + int(windows.ends[stop] - windows.starts[stop]))
        # `stop > first`: a window longer than a batch must still get its pass.
        if stop > first and width * (stop + 1 - first) > batch_tokens:
            break
        stop += 1
    return stop


def _batch(windows: Windows, first: int, stop: int) -> TokenBatch:
    rows = [windows.tokens(window) for window in range(first, stop)]
    lengths = torch.tensor([len(row) for row in rows])
    # Any id may pad: in a causal model no token attends to what follows it.
    ids = torch.tensor([row + [0] * (int(lengths.max()) - len(row)) for row in rows])  # (n, S)
    begin = torch.from_numpy(np.asarray(len(windows.opening) + windows.firsts[first:stop] - windows.starts[first:stop]))
    place = torch.arange(ids.shape[1])
    # (n, S) targets: neither context nor padding
    return TokenBatch(ids, lengths, (place >= begin[:, None]) & (place < lengths[:, None]))


@torch.no_grad()
def _entropies(policy: Policy, batch: TokenBatch, top_k: int) -> NDArray[np.float32]:
    """Entropies of a batch's targets, row by row; logits exist for one chunk of targets at a time."""
    batch = batch.to(next(policy.parameters()).device)
    # The trunk without its head: logits of all positions could fill the memory. (n, S, H)
    out = policy.causal_lm.get_decoder()(input_ids=batch.ids, attention_mask=batch.mask.long(), use_cache=False)
    # (M, H), the state before each target; column 0 is never a target
    hidden = out.last_hidden_state[batch.target.roll(-1, dims=1)]
    head, size = policy.head(), max(1, LOGITS_PER_CHUNK // policy.vocabulary)
    chunks = [next_token_entropy(head(rows), top_k) for rows in hidden.split(size)]
    return torch.cat(chunks).cpu().numpy()
