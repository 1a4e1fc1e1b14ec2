"""End tokens: all that may end a completion of a policy."""

import pytest
from conftest import tiny_spec
from vocabularies import CHATML, chatting

from lit_rl.models.loading import end_tokens
from lit_rl.models.policy import Policy


def test_the_chat_templates_end_of_turn_ends_a_completion():
    tokenizer = chatting(CHATML, "<|im_start|>", "<|im_end|>")
    model = Policy(tiny_spec(config={"vocab_size": 400}), tokenizer).causal_lm
    ends = tokenizer.convert_tokens_to_ids(["<eos>", "<|im_end|>"])
    assert end_tokens(model, tokenizer) == sorted(ends)


def test_further_tokens_end_a_completion():
    tokenizer = chatting(CHATML, "<|im_start|>", "<|im_end|>")
    line_break = tokenizer("\n", add_special_tokens=False)["input_ids"]
    assert len(line_break) == 1
    policy = Policy(tiny_spec(config={"vocab_size": 400}, stop_tokens=["\n", "<|im_start|>"]), tokenizer)
    assert {*line_break, tokenizer.convert_tokens_to_ids("<|im_start|>"), tokenizer.eos_token_id} <= set(policy.end_tokens)


def test_a_stop_token_that_is_several_tokens_is_refused():
    tokenizer = chatting(CHATML, "<|im_start|>", "<|im_end|>")
    with pytest.raises(ValueError, match=r"^model\.policy\.stop_tokens: 'zq\\n' is not one token of the tokenizer"):
        Policy(tiny_spec(config={"vocab_size": 400}, stop_tokens=["zq\n"]), tokenizer)
