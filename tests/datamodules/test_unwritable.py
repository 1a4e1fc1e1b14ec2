"""Data with characters or words that the tokenizer lacks are refused by the sample's number, before the first step."""

import pytest
from conftest import quiet_trainer, tiny_spec
from lightning.pytorch.callbacks import Callback

from lit_rl.algorithms import SFT
from lit_rl.datamodules.base import PromptDataModule
from lit_rl.datamodules.collate import collate
from lit_rl.tasks.tokenizers import arithmetic_tokenizer, rpn_tokenizer
from lit_rl.types import Sample


def sample(prompt: str, number: int, completion: str = "") -> Sample:
    return Sample(prompt, completion, "4", number)


@pytest.mark.parametrize(
    ("tokenizer", "texts", "lacking"),
    [
        (arithmetic_tokenizer(), ["1 + 2 =", "<scratchpad> how Much is 2?"], "'?', 'M'"),
        (arithmetic_tokenizer(), ["1 + 2 =", "1\n2é"], r"'\n', 'é'"),
        (rpn_tokenizer(13), ["1 2 +", "1 2 plus 40 +"], "'40', 'plus'"),
    ],
)
def test_what_is_lacking_is_named_with_the_sample(tokenizer, texts, lacking):
    for samples in ([sample(text, 7 + n) for n, text in enumerate(texts)], [sample(texts[0], 8, texts[1])]):
        with pytest.raises(ValueError, match="has no token for") as refused:
            collate(tokenizer, samples)
        assert str(refused.value) == (
            f"sample 8: the tokenizer has no token for {lacking}; choose a tokenizer that writes the data, for example bytes."
        )


class Own(PromptDataModule):
    """Sums, the last of which has a character that the tokenizer lacks."""

    def setup(self, stage: str) -> None:
        texts = [f"{n} + 2 =" for n in range(31)] + ["2 € ="]
        self.train_set = self.val_set = self.test_set = [sample(text, n, "4") for n, text in enumerate(texts)]


def test_a_run_on_such_data_stops_before_its_first_step(tmp_path):
    class Steps(Callback):
        def on_train_batch_start(self, *_):
            pytest.fail("a step has begun")

    trainer = quiet_trainer(tmp_path, max_steps=4, callbacks=[Steps()])
    with pytest.raises(ValueError, match=r"^sample 31: the tokenizer has no token for '€'; choose"):
        trainer.fit(SFT(tiny_spec()), Own(batch_size=4))
