"""End tokens: all that may end a completion of a policy."""

from conftest import tiny_spec
from vocabularies import CHATML, chatting

from lit_rl.models.loading import end_tokens
from lit_rl.models.policy import Policy


def test_the_chat_templates_end_of_turn_ends_a_completion():
    tokenizer = chatting(CHATML, "<|im_start|>", "<|im_end|>")
    model = Policy(tiny_spec(config={"vocab_size": 400}), tokenizer).causal_lm
    ends = tokenizer.convert_tokens_to_ids(["<eos>", "<|im_end|>"])
    assert end_tokens(model, tokenizer) == sorted(ends)
