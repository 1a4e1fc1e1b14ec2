"""Tokenizers of the three kinds whose tokens say their bytes, trained or written on the spot."""

import re

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from lit_rl.tasks.tokenizers import character_tokenizer
from lit_rl.text.token_bytes import token_bytes

LINES = [
    "Straße über café, naïve Ærø: 5 µm ≤ π ≈ 3.14159 and time and time again",
    "日本語のテキスト 一二三 日本 日本 数学 \\frac{a}{b} = x^{2} + y^{n+1}",
    "the answer is 42 🎉🎉 \n\tthe  sum \\sqrt{\\frac{1}{2}} of  both, and again the sum",
    "f{x}{y} {{z}} { } time after time",
]

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_level() -> PreTrainedTokenizerFast:
    """Byte-level BPE: a character of several bytes is one token or many, a space belongs to the word behind it."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    settings = {"initial_alphabet": pre_tokenizers.ByteLevel.alphabet(), "special_tokens": ["<pad>", "<eos>"]}
    backend.train_from_iterator(LINES * 4, trainers.BpeTrainer(vocab_size=360, show_progress=False, **settings))
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>")


def sentencepiece(*added: AddedToken) -> PreTrainedTokenizerFast:
    """Unigrams as SentencePiece has them: U+2581 for a space, one before the text, and bytes for unknown characters."""
    words = ["▁time", "▁and", "▁again", "▁the", "\\frac{", "▁", *sorted(set(re.findall("[!-~é]", "".join(LINES))))]
    single = [(f"<0x{byte:02X}>", -50.0) for byte in range(256)]
    vocabulary = [("<unk>", 0.0), ("</s>", 0.0), *single, *((word, -5.0) for word in words)]
    backend = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_tokens(list(added))
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>", pad_token="</s>")


def characters() -> PreTrainedTokenizerFast:
    """One token per character, and two that are written out."""
    return character_tokenizer("".join(sorted(set("".join(LINES)) | set("<>/&\n \\{}boxedthink"))), ("<answer>",))


SPACED_WORDS = ["▁Say", "▁the", "▁time", "▁", ":", *"Saytheim.0\n"]


def spaced(kind: str, puts_bos: bool = False) -> PreTrainedTokenizerFast:
    """Unigrams with a space before the text by Llama 2's normalizer (``prepend``) or Mistral's pre-tokenizer (its scheme)."""
    backend = Tokenizer(
        models.Unigram([("<s>", 0.0), ("</s>", 0.0), *((word, -5.0) for word in dict.fromkeys(SPACED_WORDS))], unk_id=0)
    )
    if kind == "prepend":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=kind)
    backend.decoder = decoders.Metaspace()
    backend.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    if puts_bos:
        backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="</s>")


def chatting(template: str, *special: str):
    """A byte-level tokenizer, whose end token is ``<eos>``, with a chat template and its special tokens."""
    tokenizer = byte_level()
    tokenizer.add_tokens([AddedToken(text, special=True) for text in special])
    tokenizer.chat_template = template
    return tokenizer


KINDS = {"byte-level": byte_level, "sentencepiece": sentencepiece, "characters": characters}


def ids_of(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def pieces_of(tokenizer: PreTrainedTokenizerFast, text: str) -> list[bytes]:
    table = token_bytes(tokenizer)
    return [table[token] for token in ids_of(tokenizer, text)]
