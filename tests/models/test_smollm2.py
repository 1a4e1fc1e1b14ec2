"""A real pretrained model: SmolLM2-135M-Instruct, which `make smollm2` puts into models/smollm2."""

import functools
from pathlib import Path

import pytest
import torch
from conftest import quiet_trainer
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_rl.algorithms import GRPO
from lit_rl.callbacks import HFExport
from lit_rl.datamodules import PromptDataModule
from lit_rl.evaluation import Evaluation
from lit_rl.models import LoRASpec, Policy, PolicySpec
from lit_rl.models.loading import load_tokenizer
from lit_rl.rewards import Reward
from lit_rl.sampling import Sampler
from lit_rl.sampling.check import check_policy
from lit_rl.text.chat import ask
from lit_rl.types import Sample, TokenBatch

FOLDER = Path(__file__).parents[2] / "models" / "smollm2"
TEXT = "The sum of two numbers is 12 and their difference is 4. So the larger number is 8, and the smaller one is 4."

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="models/smollm2 is missing; `make smollm2` makes it")


def test_scores_are_those_of_the_models_own_forward():
    spec = PolicySpec(pretrained=str(FOLDER))
    policy = Policy(spec, load_tokenizer(spec))
    check_policy(policy)
    assert policy.capabilities.packs
    ids = torch.tensor(policy_tokens(policy, TEXT))
    with torch.no_grad():
        expected = policy.causal_lm(ids[None]).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
        target = torch.ones(1, len(ids), dtype=torch.bool)
        target[0, 0] = False
        found = policy.score_sequences(TokenBatch(ids[None], torch.tensor([len(ids)]), target)).logprobs[0, 1:]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def policy_tokens(policy: Policy, text: str) -> list[int]:
    return load_tokenizer(policy.spec)(text, add_special_tokens=False)["input_ids"]


class Questions(Dataset):
    """Sums as a user's turn of the chat template."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def __len__(self):
        return 8

    def __getitem__(self, number):
        question = f"What is {number} + 3? Answer with the number."
        return Sample(ask(question, self.tokenizer, chat=True), "", str(number + 3), number)


class Sums(PromptDataModule):
    def setup(self, stage):
        self.train_set, self.val_set, self.test_set = Questions(self.tokenizer), [], []


class Length(Reward):
    """Differs within most groups."""

    def score(self, rollouts):
        return torch.tensor([float(len(text) % 7) for text in rollouts.texts])


@pytest.mark.long
def test_grpo_trains_an_adapter_in_bfloat16_and_its_export_is_the_policy(tmp_path):
    module = GRPO(
        PolicySpec(pretrained=str(FOLDER), lora=LoRASpec(r=4)),
        sampler=Sampler(max_new_tokens=6),
        reward=Length(),
        optimizer=functools.partial(torch.optim.AdamW, lr=1e-3),
        evaluation=Evaluation(max_new_tokens=4),
        group_size=4,
    )
    trainer = quiet_trainer(tmp_path, max_steps=2, precision="bf16-mixed", callbacks=[HFExport()])
    trainer.fit(module, Sums(batch_size=2))
    ids = torch.tensor([policy_tokens(module.policy, TEXT)])
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "export", dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(opened(ids).logits, module.policy.model.eval()(ids).logits, rtol=1e-4, atol=1e-3)
    assert AutoTokenizer.from_pretrained(tmp_path / "export").chat_template == module.tokenizer.chat_template
