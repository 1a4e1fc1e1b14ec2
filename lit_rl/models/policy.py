"""A causal language model as a policy: next-token logits for sampling, log-probabilities of given tokens for learning.

The learner has three ways to hidden states, by what the model is capable of:

    packed          real tokens only, each prompt once per group (`lit_rl.kernels.packing`)
    shared prompts  each prompt once, with gradient, through a cache that is repeated for the rows of its group
    whole rows      padded rows of prompt and completion; also under gradient checkpointing, which switches the cache off

Logits exist only chunk by chunk (`lit_rl.kernels.logprobs`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from lit_rl.kernels.fused_head import LinearHead, without_missing
from lit_rl.kernels.kv_cache import PreallocatedLayer, repeat_cache, select_cache
from lit_rl.kernels.logprobs import score_tokens
from lit_rl.kernels.packing import Packed, packed_options
from lit_rl.models.capabilities import Capabilities
from lit_rl.models.loading import end_tokens, load_model, missing_tokens, position_limit
from lit_rl.models.router_loss import RouterLoss
from lit_rl.models.spec import PolicySpec
from lit_rl.models.value_head import ValueHead, load_value_head
from lit_rl.rollouts import Rollouts
from lit_rl.text.stop_strings import StopStrings
from lit_rl.types import PromptBatch, TokenBatch, TokenScores


class Policy(nn.Module):
    """Causal language model that samplers and objectives ask for logits, log-probabilities and values.

    Args:
        spec: names the model.
        tokenizer: the model's tokenizer.
    """

    missing: Tensor | None
    """Ids without a token; None for none."""

    def __init__(self, spec: PolicySpec, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        self.model: Any = load_model(spec, tokenizer)
        self.model.train()  # transformers hands out pretrained models in eval mode
        self.spec, self.tokenizer = spec, tokenizer
        causal_lm = self.causal_lm
        self.end_tokens = end_tokens(causal_lm, tokenizer, spec.stop_tokens)
        self.stop_strings = StopStrings(spec.stop_strings, tokenizer)
        self.value_head: ValueHead | None = None
        # Rows of the head, often more than the tokenizer has tokens.
        self.vocabulary = causal_lm.get_output_embeddings().weight.shape[0]
        # Ids without a token have probability 0 wherever the policy is asked; the exported model keeps its own logits.
        self.register_buffer("missing", missing_tokens(tokenizer, self.vocabulary), persistent=False)
        self.capabilities = Capabilities.declared(spec, causal_lm)  # `lit_rl.sampling.check` finds the others
        self.router = RouterLoss(causal_lm, spec)
        # Set by `compile_policy`: whether layers are compiled, and the compiled `eager_step`, if it is compiled too.
        self.compiled = False
        self.compiled_step: Callable[..., Tensor] | None = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Policy:
        """Move and cast, but keep the precision of buffers that are not saved: in bfloat16 rotary angles drift."""
        kept = [
            (module, name, buffer)
            for module in self.modules()
            for name, buffer in module._buffers.items()
            if buffer is not None and name in module._non_persistent_buffers_set and buffer.is_floating_point()
        ]
        super()._apply(fn, recurse)
        for module, name, buffer in kept:
            module._buffers[name] = buffer.to(module._buffers[name].device)  # type: ignore[union-attr]
        return self

    @property
    def causal_lm(self) -> PreTrainedModel:
        """The transformers model, without peft's wrapping."""
        return self.model.get_base_model() if self.adapted else self.model

    @property
    def adapted(self) -> bool:
        """Whether the model has an adapter."""
        return not isinstance(self.model, PreTrainedModel)

    @property
    def context(self) -> int | None:
        """Tokens that fit into the model's positions; None for no limit."""
        return position_limit(self.causal_lm.config)

    def add_value_head(self) -> None:
        """Add a critic on the trunk: the head that was exported beside the pretrained weights, or a new one."""
        width = self.causal_lm.get_output_embeddings().weight.shape[1]
        self.value_head = ValueHead(width, torch.float64 if self.spec.dtype == "float64" else torch.float32)
        load_value_head(self.value_head, self.spec.pretrained)

    def disable_dropout(self) -> None:
        """Set every dropout and router jitter to 0, so that sampler and learner see one policy in train mode too."""
        for module in self.modules():
            # Attention often keeps its dropout as a plain number and hands it to a function; `nn.Dropout` calls its own `p`.
            for name, value in vars(module).items():
                if ("drop" in name or name == "jitter_noise") and isinstance(value, float):
                    setattr(module, name, 0.0)
            if isinstance(module, nn.Dropout):
                module.p = 0.0

    @contextmanager
    def adapter_off(self) -> Iterator[None]:
        """Run the model without its adapter, if it has one: the reference policy of a LoRA run."""
        with self.model.disable_adapter() if self.adapted else nullcontext():
            yield

    def prefill(self, prompts: PromptBatch) -> tuple[Tensor, DynamicCache]:
        """Next-token logits (P, V) of every prompt, and the cache of the prompts' keys and values."""
        cache = DynamicCache(config=self.causal_lm.config)
        with self._uncompiled():
            hidden = self._trunk(prompts.ids, prompts.mask, _positions(prompts.mask), cache)  # (P, L, H)
        # Prompts are padded on the left, so the last column is every prompt's last token.
        return self._logits(hidden[:, -1]), cache

    def decode_step(self, tokens: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache) -> Tensor:
        """Logits (n, V) after one more token in each row.

        Args:
            tokens: (n) the tokens sampled last.
            mask: (n, L + t) bool over everything in the cache and this token.
            positions: (n) position of this token in its row.
            cache: grows by one position.
        """
        # Layers with a window or a convolution get the 2-D mask, from which transformers makes masks of their own.
        plain = self.capabilities.shares_keys and all(isinstance(layer, PreallocatedLayer) for layer in cache.layers)
        mask = mask[:, None, None] if plain else mask
        # The compiler would work again for a single row, and for layers with shared prompts.
        compiled = len(tokens) > 1 and all(type(layer) is PreallocatedLayer for layer in cache.layers)
        if compiled and self.compiled_step is not None:
            return self.compiled_step(tokens, mask, positions, cache)
        with self._uncompiled():
            return self.eager_step(tokens, mask, positions, cache)

    def eager_step(self, tokens: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache) -> Tensor:
        """`decode_step` with a mask of 2 dimensions, or of 4: (n, 1, 1, L + t)."""
        return self._logits(self._trunk(tokens[:, None], mask, positions[:, None], cache)[:, -1])

    def score(self, rollouts: Rollouts, entropy_grad: bool = False, details: bool = True) -> TokenScores:
        """Scores (N, T) of the sampled tokens under this policy, at their sampling temperature and support; 0 elsewhere.

        Args:
            rollouts: the rows.
            entropy_grad: whether entropies carry gradient.
            details: whether to compute entropies and hits.
        """
        return self._score(self.hidden_states(rollouts), rollouts, entropy_grad, details)

    def values(self, rollouts: Rollouts) -> Tensor:
        """(N, T) returns that the critic expects before each sampled token; 0 elsewhere."""
        return self._values(self.hidden_states(rollouts), rollouts)

    def score_with_values(self, rollouts: Rollouts, entropy_grad: bool, detached: bool) -> tuple[TokenScores, Tensor]:
        """`score` and `values` from one pass; ``detached`` keeps the gradient of the values out of the trunk."""
        hidden = self.hidden_states(rollouts)
        values = self._values(hidden.detach() if detached else hidden, rollouts)
        return self._score(hidden, rollouts, entropy_grad, False), values

    def _values(self, hidden: Tensor, rollouts: Rollouts) -> Tensor:
        if self.value_head is None:
            raise ValueError("this policy has no value head; call add_value_head() first.")
        return _scatter(self.value_head(hidden), rollouts.sampled)

    def _score(self, hidden: Tensor, rollouts: Rollouts, entropy_grad: bool, details: bool) -> TokenScores:
        mask, support = rollouts.sampled, rollouts.support
        scores = score_tokens(
            hidden,
            rollouts.completion_ids[mask],
            self.head(),
            self.vocabulary,
            temperature=rollouts.temperature[:, None].expand(mask.shape)[mask],
            # Counts are 0 at tokens that were not sampled, so the flat ids still fit the counts that the mask leaves.
            kept=None if support is None else (support.ids, support.counts[mask]),
            entropy_grad=entropy_grad,
            details=details,
        )
        return TokenScores(*(_scatter(value, mask) for value in scores))

    def score_sequences(self, batch: TokenBatch) -> TokenScores:
        """Scores (N, S) of the targets of whole sequences; 0 elsewhere."""
        scores = score_tokens(self.sequence_states(batch), batch.ids[batch.target], self.head(), self.vocabulary)
        return TokenScores(*(_scatter(value, batch.target) for value in scores))

    def sequence_states(self, batch: TokenBatch) -> Tensor:
        """(M, H) hidden states that predict the M targets of whole sequences, row by row."""
        mask = batch.mask
        predicts = batch.target.roll(-1, dims=1)  # (N, S), tokens before a target; column 0 is never a target
        if self.capabilities.packs:
            nothing = batch.lengths[:0]
            packed = Packed(batch.ids, mask, batch.ids[:0], nothing, nothing)
            return self._packed_trunk(packed)[packed.prompt_places[predicts[:, : packed.prompt_places.shape[1]]]]
        return self._trunk(batch.ids, mask, _positions(mask))[predicts]

    def hidden_states(self, rollouts: Rollouts) -> Tensor:
        """(M, H) hidden states that predict the M sampled tokens, row by row."""
        if self.capabilities.packs:
            return self._packed(rollouts)
        rows = self._shared_prompts(rollouts) if self.capabilities.shares_prompts else self._whole_rows(rollouts)
        return rows[rollouts.sampled]

    def _packed(self, rollouts: Rollouts) -> Tensor:
        prompts, owner = rollouts.prompts, rollouts.prompt
        # The last token of a row predicts nothing and is not run.
        packed = Packed(prompts.ids, prompts.mask, rollouts.completion_ids, rollouts.lengths - 1, owner)
        # Rollouts are cut to their longest row, so the places of the rows have T - 1 columns.
        before = torch.cat([packed.last_of_prompts[owner, None], packed.row_places], dim=1)  # (N, T)
        return self._packed_trunk(packed)[before[rollouts.sampled]]

    def _packed_trunk(self, packed: Packed) -> Tensor:
        """(K, H) hidden states of a packed sequence of K tokens."""
        out = self.causal_lm.get_decoder()(**packed_options(packed), use_cache=False)
        self.router.collect(out)
        return out.last_hidden_state[0]

    def _shared_prompts(self, rollouts: Rollouts) -> Tensor:
        """(N, T, H) hidden states that predict the completion tokens; each prompt is run once."""
        with self._uncompiled():
            return self._on_repeated_cache(rollouts)

    def _on_repeated_cache(self, rollouts: Rollouts) -> Tensor:
        prompts, owner = rollouts.prompts, rollouts.prompt
        cache = DynamicCache(config=self.causal_lm.config)
        last = self._trunk(prompts.ids, prompts.mask, _positions(prompts.mask), cache)[:, -1:]  # (P, 1, H)
        last = last.index_select(0, owner)  # (N, 1, H)
        inputs = rollouts.completion_ids[:, :-1]  # (N, T - 1): the last token predicts nothing
        if inputs.shape[1] == 0:
            return last
        if (repeats := rollouts.rows_per_prompt) is not None:
            repeat_cache(cache, repeats)
        else:
            select_cache(cache, owner)
        prompt_mask = prompts.mask[owner]
        positions = prompt_mask.sum(1, keepdim=True) + torch.arange(inputs.shape[1], device=inputs.device)  # (N, T - 1)
        mask = torch.cat([prompt_mask, rollouts.mask[:, :-1]], dim=1)  # (N, L + T - 1)
        return torch.cat([last, self._trunk(inputs, mask, positions, cache)], dim=1)

    def _whole_rows(self, rollouts: Rollouts) -> Tensor:
        """(N, T, H) hidden states that predict the completion tokens, from padded rows of prompt and completion."""
        prompts, owner = rollouts.prompts, rollouts.prompt
        ids = torch.cat([prompts.ids[owner], rollouts.completion_ids[:, :-1]], dim=1)  # (N, L + T - 1)
        mask = torch.cat([prompts.mask[owner], rollouts.mask[:, :-1]], dim=1)
        # The prompt's last token predicts the first of the completion.
        return self._trunk(ids, mask, _positions(mask))[:, prompts.ids.shape[1] - 1 :]

    def _uncompiled(self) -> AbstractContextManager[None]:
        """Run layers uncompiled on a cache: each finds its states there by its number, and would be compiled for itself."""
        return torch.compiler.set_stance("force_eager") if self.compiled else nullcontext()

    def _trunk(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache | None = None) -> Tensor:
        """(n, S, H) hidden states of the tokens (n, S), after the tokens in the cache if one is given."""
        options: dict[str, Any] = {"position_ids": positions} if self.capabilities.takes_positions else {}
        # The decoder alone: the whole model would compute the logits of all tokens at once.
        out = self.causal_lm.get_decoder()(
            input_ids=ids,
            attention_mask=mask if mask.dim() == 4 else mask.long(),
            past_key_values=cache,
            use_cache=cache is not None,
            **options,
        )
        if mask.dim() == 2:  # others are of decoding, which has no gradient
            self.router.collect(out, mask[:, -ids.shape[1] :])
        return out.last_hidden_state

    def head(self) -> LinearHead | Callable[[Tensor], Tensor]:
        """Hidden states to logits: the model's own, scaled and capped by its config (Cohere, Granite, Gemma), -inf at ids
        without a token."""
        config, output = self.causal_lm.config, self.causal_lm.get_output_embeddings()
        scale = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
        cap = getattr(config, "final_logit_softcapping", None) or 0.0
        # Not `isinstance`: a quantized head is a subclass, and its weight is packed.
        if type(output) is nn.Linear:
            return LinearHead(output.weight, output.bias, scale, cap, self.missing)

        def logits(hidden: Tensor) -> Tensor:
            raw = output(hidden) * scale
            return without_missing(torch.tanh(raw / cap) * cap if cap else raw, self.missing)

        return logits

    def _logits(self, hidden: Tensor) -> Tensor:
        return self.head()(hidden)


def _positions(mask: Tensor) -> Tensor:
    """Position of each token among the tokens that count in its row: (n, S) bool -> (n, S)."""
    return (mask.long().cumsum(1) - 1).clamp(min=0)


def _scatter(values: Tensor, mask: Tensor) -> Tensor:
    """Table (n, S) with the values (M) at the M places where the mask is True, row by row; 0 elsewhere."""
    return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(mask, values)
