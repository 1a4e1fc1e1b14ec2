"""Lengths of prompts before the first step: refused, left out or cut, by sample number."""

import pytest
from conftest import quiet_trainer, tiny_spec
from vocabularies import spaced

from lit_rl.algorithms import GRPO, SFT
from lit_rl.datamodules import PromptDataModule
from lit_rl.datamodules.base import collate
from lit_rl.datamodules.lengths import limit_prompts
from lit_rl.evaluation import Evaluation
from lit_rl.sampling import Sampler
from lit_rl.tasks.tokenizers import arithmetic_tokenizer
from lit_rl.types import Sample

TOKENIZER = arithmetic_tokenizer()
SAMPLES = [Sample(f"<bos>{'1' * length}", "2", "2", 10 + length) for length in (3, 9, 4)]  # 4, 10 and 5 tokens


class Fixed(PromptDataModule):
    """The same few samples in all sets."""

    samples = SAMPLES

    def setup(self, stage):
        self.train_set = self.val_set = self.test_set = list(self.samples)


def run(tmp_path, module, **options):
    quiet_trainer(tmp_path, max_steps=1).fit(module, Fixed(batch_size=1, **options))


def test_a_prompt_above_the_limit_is_refused_by_its_number():
    message = r"sample 19 of data\.train_set has a prompt of 10 tokens, more than data\.max_prompt_tokens 5; .*1 of 3 prompts"
    with pytest.raises(ValueError, match=message):
        limit_prompts("train_set", SAMPLES, TOKENIZER, 5, "refuse")


def test_longer_prompts_are_left_out_or_cut_to_their_ends():
    assert limit_prompts("train_set", SAMPLES, TOKENIZER, 5, "drop") == [SAMPLES[0], SAMPLES[2]]
    assert limit_prompts("train_set", SAMPLES, TOKENIZER, 10, "cut") is SAMPLES
    cut = limit_prompts("train_set", SAMPLES, TOKENIZER, 5, "cut")
    batch = collate(TOKENIZER, cut)
    assert batch.ids[1].tolist() == TOKENIZER("11111")["input_ids"]
    assert batch.completions[1] == [*TOKENIZER("2")["input_ids"], TOKENIZER.eos_token_id]
    assert (cut[0], cut[2]) == (SAMPLES[0], SAMPLES[2])


def test_a_cut_prompt_keeps_bos():
    tokenizer = spaced("first", puts_bos=True)
    (cut,) = limit_prompts("val_set", [Sample("Say: time", "the", "", 0)], tokenizer, 2, "cut")
    assert tokenizer.convert_ids_to_tokens(cut.context) == ["<s>", "▁time"]


def test_a_prompt_that_does_not_fit_the_model_stops_the_run_before_its_first_step(tmp_path):
    spec = tiny_spec(config={"max_position_embeddings": 16})
    quiet = Evaluation(max_new_tokens=0)
    module = GRPO(spec, sampler=Sampler(max_new_tokens=8), group_size=2, evaluation=quiet)
    message = (
        r"sample 19 of data\.train_set has a prompt of 10 tokens, and with 8 new ones \(model\.sampler\.max_new_tokens\)"
        r".* 16 positions; .*max_prompt_tokens 8"
    )
    with pytest.raises(ValueError, match=message):
        run(tmp_path, module)
    run(tmp_path, GRPO(spec, sampler=Sampler(max_new_tokens=6), group_size=2, evaluation=quiet))
    with pytest.raises(ValueError, match=r"prompt of 10 tokens, and with 2 of its completion"):
        run(tmp_path, SFT(tiny_spec(config={"max_position_embeddings": 11}), evaluation=quiet))


def test_a_limit_of_generated_prompts_is_refused(tmp_path):
    class Endless(Fixed):
        endless = True

    module = SFT(tiny_spec(), evaluation=Evaluation(max_new_tokens=0))
    with pytest.raises(ValueError, match=r"data\.max_prompt_tokens is for whole samples .* generated"):
        quiet_trainer(tmp_path, max_steps=1).fit(module, Endless(batch_size=1, max_prompt_tokens=5))
