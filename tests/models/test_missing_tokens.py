"""Ids without a token: a head with more rows than its tokenizer has tokens, at its end or between them."""

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import quiet_trainer, tiny_data, tiny_spec
from grpo_runs import Length
from tiny_rollouts import prompts_of, rollouts_of
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lit_rl.algorithms import GRPO
from lit_rl.entropy.compute import window_entropies
from lit_rl.evaluation import Evaluation
from lit_rl.models import Policy, PolicySpec
from lit_rl.models.loading import load_model, load_tokenizer, missing_tokens
from lit_rl.models.reference import Reference
from lit_rl.sampling import Sampler
from lit_rl.sampling.check import check_policy
from lit_rl.sampling.sampler import SampleKey
from lit_rl.text.windows import Windows
from lit_rl.types import TokenBatch

KNOWN = [0, 1, 2, 3, 5, 8, 9]
"""Ids with a token, of the 12 of the head."""
MISSING = [4, 6, 7, 10, 11]


def tokenizer_with_gaps() -> PreTrainedTokenizerFast:
    words = dict(zip(["<pad>", "<bos>", "<eos>", "a", "b", "c", "d"], KNOWN, strict=True))
    backend = Tokenizer(models.WordLevel(words))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")


def policy_with_gaps(model_type="llama", **config) -> Policy:
    """A policy whose ids without a token are the most likely ones."""
    # The cap on attention scores needs eager attention, whose mask is infinite in float64.
    dtype, attention = ("float32", "eager") if model_type == "gemma2" else ("float64", None)
    spec = tiny_spec(model_type, dtype, config={"vocab_size": 12, **config}, attention=attention)
    policy = Policy(spec, tokenizer_with_gaps())
    with torch.no_grad():
        for weight in policy.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.3)
    policy.disable_dropout()
    return policy


@pytest.fixture(scope="module", params=["llama", "gemma2"])
def policy(request) -> Policy:
    """A policy with a plain head, or with one that caps its logits; not to be changed."""
    torch.manual_seed(0)
    config = {"head_dim": 16, "final_logit_softcapping": 1.5} if request.param == "gemma2" else {}
    return policy_with_gaps(request.param, **config)


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    # llama computes norms and angles in float32, whatever the weights are.
    torch.testing.assert_close(found.double(), expected.double(), rtol=1e-4, atol=2e-5)


def rows_on_prompts():
    return rollouts_of(prompts_of([3, 5, 8], [9]), 2, [[3, 5, 2], [8], [9, 2], [5, 5, 3]])


def plain_logprobs(policy: Policy, ids: torch.Tensor) -> torch.Tensor:
    """(S, 12) log-probabilities by the model's own logits at the 7 known ids, -inf elsewhere."""
    logits = policy.causal_lm(input_ids=ids[None], use_cache=False).logits[0]
    return torch.full_like(logits, -torch.inf).index_copy(1, torch.tensor(KNOWN), logits[:, KNOWN].log_softmax(1))


def plain_rows(policy: Policy, rollouts) -> list[torch.Tensor]:
    """(T, 12) for each row, before each of its tokens."""
    rows = []
    for row, owner in enumerate(rollouts.prompt.tolist()):
        prompt = rollouts.prompts.ids[owner][rollouts.prompts.mask[owner]]
        ids = torch.cat([prompt, rollouts.completion_ids[row, : rollouts.lengths[row]]])
        rows.append(plain_logprobs(policy, ids)[len(prompt) - 1 : -1])
    return rows


def test_ids_without_a_token_are_found_between_tokens_and_after_them():
    assert missing_tokens(tokenizer_with_gaps(), 12).tolist() == MISSING
    assert missing_tokens(load_tokenizer(tiny_spec()), 53) is None
    assert missing_tokens(load_tokenizer(tiny_spec()), 55).tolist() == [53, 54]


def test_a_model_from_scratch_has_room_for_ids_after_a_gap(tmp_path):
    tokenizer_with_gaps().save_pretrained(tmp_path)
    spec = PolicySpec(config=tiny_spec().config, tokenizer=str(tmp_path))
    tokenizer = load_tokenizer(spec)
    assert load_model(spec, tokenizer).get_input_embeddings().num_embeddings == 10
    spec = replace(spec, config={**tiny_spec().config, "vocab_size": 9})
    with pytest.raises(ValueError, match=r"^model\.policy\.tokenizer: 10 tokens, but the model embeds only 9;"):
        load_model(spec, tokenizer)


def test_scores_are_over_the_tokens_that_exist(policy):
    rollouts = rows_on_prompts()
    scores = policy.score(rollouts)
    for row, logp in enumerate(plain_rows(policy, rollouts)):
        length = int(rollouts.lengths[row])
        expected = logp.gather(1, rollouts.completion_ids[row, :length, None])[:, 0]
        entropies = -(logp[:, KNOWN].exp() * logp[:, KNOWN]).sum(1)
        assert_close(scores.logprobs[row, :length], expected)
        assert_close(scores.entropies[row, :length], entropies)


def test_the_gradient_is_that_of_plain_rows(policy):
    rollouts, weights = rows_on_prompts(), list(policy.parameters())
    scores = policy.score(rollouts, entropy_grad=True)
    found = torch.autograd.grad(scores.logprobs.sum() + 0.3 * scores.entropies.sum(), weights)
    total = 0.0
    for row, logp in enumerate(plain_rows(policy, rollouts)):
        chosen = rollouts.completion_ids[row, : rollouts.lengths[row], None]
        total = total + logp.gather(1, chosen).sum() - 0.3 * (logp[:, KNOWN].exp() * logp[:, KNOWN]).sum()
    for value, expected in zip(found, torch.autograd.grad(total, weights), strict=True):
        assert_close(value, expected)


def test_only_tokens_that_exist_are_sampled_and_the_learner_agrees(policy):
    for sampler in (Sampler(8, temperature=2.0), Sampler(8, top_k=9, top_p=0.9), Sampler(8, temperature=0.0)):
        rollouts = sampler.sample(policy, prompts_of([3, 5, 8], [9]), 16, SampleKey(0, 0))
        assert set(rollouts.completion_ids[rollouts.mask].tolist()) <= set(KNOWN)
        scores = policy.score(rollouts)
        assert_close(scores.logprobs.float(), rollouts.logprobs.float())
        if sampler.temperature:
            assert_close(scores.entropies.float(), rollouts.entropies.float())


def test_reference_sequences_and_proxy_are_over_the_tokens_that_exist(policy):
    rollouts, ids = rows_on_prompts(), torch.tensor([3, 5, 8, 9])
    assert_close(Reference(policy).score(rollouts), policy.score(rollouts).logprobs.float())
    logp = plain_logprobs(policy, ids)[:-1]
    entropies = -(logp[:, KNOWN].exp() * logp[:, KNOWN]).sum(1)
    target = torch.tensor([[False, True, True, True]])
    scores = policy.score_sequences(TokenBatch(ids[None], torch.tensor([4]), target))
    assert_close(scores.logprobs[0, 1:], logp.gather(1, ids[1:, None])[:, 0])
    place = np.array([0])
    windows = Windows(ids.numpy(), place, place + 1, place + 4, place + 4)
    _, found = next(window_entropies(policy, windows))
    assert found.tolist() == pytest.approx(entropies.tolist(), abs=1e-5)


def test_the_exported_model_keeps_its_own_logits(policy):
    logits = policy.causal_lm(input_ids=torch.tensor([[3, 5]])).logits
    assert logits.shape[-1] == 12
    assert logits.isfinite().all()


def test_the_check_at_the_start_takes_a_head_with_gaps():
    policy = policy_with_gaps()
    check_policy(policy)
    assert policy.capabilities.packs
    rollouts = rows_on_prompts()
    for row, logp in enumerate(plain_rows(policy, rollouts)):
        length = int(rollouts.lengths[row])
        expected = logp.gather(1, rollouts.completion_ids[row, :length, None])[:, 0]
        assert_close(policy.score(rollouts).logprobs[row, :length], expected)


def test_a_run_samples_only_tokens_that_exist(tmp_path):
    spec = tiny_spec(config={"vocab_size": 250})
    seen = []

    class Lengths(Length):
        def score(self, rollouts):
            seen.append(rollouts.completion_ids[rollouts.mask])
            return super().score(rollouts)

    options = {"sampler": Sampler(8), "reward": Lengths(), "group_size": 4, "evaluation": Evaluation(max_new_tokens=4)}
    module = GRPO(spec, optimizer=functools.partial(torch.optim.AdamW, lr=1e-3), kl_coef=0.1, **options)
    trainer = quiet_trainer(tmp_path, max_steps=2)
    trainer.fit(module, tiny_data())
    tokens = torch.cat(seen)
    assert len(tokens) > 100
    assert int(tokens.max()) < len(module.tokenizer)
