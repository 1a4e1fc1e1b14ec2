"""Compiled policies: the same tokens, scores and gradients, and no more graphs for a deeper model.

Most tests trace as a real run does, but leave out the generation of code, which takes long.
"""

import copy

import pytest
import torch
from conftest import quiet_trainer, tiny_data, tiny_spec
from grpo_runs import MOVING, Length
from tiny_rollouts import prompts_of, rollouts_of

from lit_rl.algorithms import GRPO
from lit_rl.evaluation import Evaluation
from lit_rl.models import LoRASpec, Policy, PolicySpec
from lit_rl.models.compiling import compile_policy
from lit_rl.models.loading import load_tokenizer
from lit_rl.sampling import Sampler
from lit_rl.sampling.check import check_policy
from lit_rl.sampling.sampler import SampleKey
from lit_rl.types import TokenBatch

KINDS = {
    "gpt2": tiny_spec("gpt2"),
    "gradient checkpointing": tiny_spec(gradient_checkpointing=True),
    "lora": tiny_spec(lora=LoRASpec(r=2)),
    "gemma3_text": tiny_spec("gemma3_text", config={"sliding_window": 3}),
    "qwen3_moe": tiny_spec("qwen3_moe"),
    "lfm2": tiny_spec("lfm2", config={"layer_types": ["conv", "full_attention"]}),
    "eager attention": tiny_spec(attention="eager"),
}


@pytest.fixture(autouse=True)
def nothing_compiled_yet():
    forget()
    yield
    forget()


@pytest.fixture
def without_code_generation():
    with torch.compiler.set_stance("default", force_backend="aot_eager"):
        yield


def forget() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


def graphs() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def pair(spec: PolicySpec) -> tuple[Policy, Policy]:
    """A policy, and its compiled copy."""
    torch.manual_seed(0)
    policy = Policy(spec, load_tokenizer(spec))
    policy.disable_dropout()
    check_policy(policy)
    compiled = copy.deepcopy(policy)
    compile_policy(compiled)
    return policy, compiled


def prompts():
    return prompts_of([4, 5, 6], [7], [8, 9])


def rows():
    return rollouts_of(prompts(), 2, [[4, 5], [6], [7, 7, 7], [5], [4, 6, 5, 8], [9]])


def gradient(policy: Policy) -> torch.Tensor:
    scores = policy.score(rows())
    weights = torch.linspace(-1, 2, scores.logprobs.numel()).view(scores.logprobs.shape)
    learning = [p for p in policy.parameters() if p.requires_grad]
    grads = torch.autograd.grad((scores.logprobs * weights).sum(), learning, allow_unused=True)
    return torch.cat([grad.flatten() for grad in grads if grad is not None])


def assert_same_draws_and_gradient(policy: Policy, compiled: Policy) -> None:
    drawn, again = (Sampler(8).sample(each, prompts(), 4, SampleKey(3, 0)) for each in (policy, compiled))
    assert torch.equal(drawn.completion_ids, again.completion_ids)
    torch.testing.assert_close(again.logprobs, drawn.logprobs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradient(compiled), gradient(policy), rtol=1e-3, atol=1e-5)


def assert_same(policy: Policy, compiled: Policy) -> None:
    assert_same_draws_and_gradient(policy, compiled)
    with torch.no_grad():
        torch.testing.assert_close(compiled.score(rows()).logprobs, policy.score(rows()).logprobs, rtol=1e-4, atol=1e-5)
    # Whole sequences, as SFT has them, are all that is compiled of a model with convolutions.
    ids, lengths = torch.arange(3, 27).view(4, 6), torch.tensor([6, 3, 5, 6])
    place = torch.arange(6)
    sequences = TokenBatch(ids, lengths, (place > 0) & (place < lengths[:, None]))
    expected = policy.score_sequences(sequences).logprobs
    torch.testing.assert_close(compiled.score_sequences(sequences).logprobs, expected, rtol=1e-4, atol=1e-5)
    assert graphs() > 0


@pytest.mark.long
def test_a_compiled_policy_is_the_same_policy(without_code_generation):
    assert_same_draws_and_gradient(*pair(tiny_spec(config={"num_hidden_layers": 1})))
    assert graphs() > 0


@pytest.mark.long
def test_generated_code_computes_the_same_policy():
    assert_same(*pair(tiny_spec()))


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_of_model_stay_the_same(kind, without_code_generation):
    assert_same(*pair(KINDS[kind]))


@pytest.mark.long
def test_a_deeper_model_has_no_more_graphs_to_learn_by(without_code_generation):
    counts = []
    for layers in (1, 4):
        forget()
        _, compiled = pair(tiny_spec(config={"num_hidden_layers": layers}))
        gradient(compiled)
        counts.append(graphs())
    assert counts[0] == counts[1] > 0


@pytest.mark.long
def test_rollouts_of_any_size_are_decoded_by_one_graph(without_code_generation):
    _, compiled = pair(tiny_spec())
    for number, size in enumerate((2, 4, 3)):
        Sampler(6 + number).sample(compiled, prompts(), size, SampleKey(3, number))
    assert graphs() == 1


@pytest.mark.long
def test_a_compiled_run_learns_what_a_plain_one_does(tmp_path, without_code_generation):
    weights = []
    for compiled in (False, True):
        module = GRPO(
            tiny_spec(compile=compiled),
            sampler=Sampler(6),
            reward=Length(),
            group_size=4,
            kl_coef=0.1,
            optimizer=MOVING,
            evaluation=Evaluation(max_new_tokens=4),
        )
        quiet_trainer(tmp_path, max_steps=4).fit(module, tiny_data())
        weights.append(torch.cat([p.detach().flatten() for p in module.policy.parameters()]))
    assert graphs() > 0
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-3, atol=1e-5)


@pytest.mark.long
def test_mixed_precision_is_compiled_too(without_code_generation):
    policy, compiled = pair(tiny_spec())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(compiled.score(rows()).logprobs, policy.score(rows()).logprobs, rtol=2e-2, atol=2e-2)
    assert graphs() > 0


def test_a_machine_without_a_compiler_is_told_so(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(ValueError, match=r"model\.policy\.compile needs a C\+\+ compiler"):
        pair(tiny_spec())
