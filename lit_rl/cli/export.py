"""``lit-rl export ADAPTER OUT --merge [--dtype bfloat16]``: an exported adapter becomes a folder of whole weights.

The folder is opened again and compared with base + adapter before it replaces an earlier export. That takes memory for the
model in float32.
"""

from __future__ import annotations

from pathlib import Path

from lit_rl.cli.errors import UnknownOption

DTYPES = ("bfloat16", "float16", "float32")
USAGE = f"write lit-rl export ADAPTER OUT --merge [--dtype {'|'.join(DTYPES)}]; ADAPTER is the export of a run with lora."


def main(args: list[str]) -> None:
    """Run the command.

    Args:
        args: arguments after ``export``.
    """
    if {"-h", "--help"} & set(args):
        print(__doc__)
        return
    folder, target, dtype = parse(args)
    if not folder.is_dir():
        raise ValueError(f"the folder {str(folder)!r} does not exist; {USAGE}")
    # After the arguments were checked, since torch and transformers take seconds to import.
    import torch

    from lit_rl.cli.noise import quiet_start
    from lit_rl.models.merging import merge_export

    quiet_start()
    merged = merge_export(folder, target, getattr(torch, dtype))
    print(
        f"{target}: merged in {dtype}. Log-probabilities differ by {merged.difference:.2g} nats a token from base + adapter; "
        f"the adapter changes them by {merged.change:.2g}."
    )


def parse(args: list[str]) -> tuple[Path, Path, str]:
    """Folder of the adapter, folder to write, and precision.

    Raises:
        ValueError: for anything else than the usage says.
    """
    words, dtype, merge = [], DTYPES[0], False
    rest = iter([part for arg in args for part in (arg.split("=", 1) if arg.startswith("--") else [arg])])
    for arg in rest:
        if arg == "--merge":
            merge = True
        elif arg == "--dtype":
            dtype = next(rest, "")
        elif arg.startswith("-"):
            raise UnknownOption.among(arg, ["--merge", "--dtype"])
        else:
            words.append(arg)
    if dtype not in DTYPES:
        raise ValueError(f"--dtype is {dtype!r}; write one of {', '.join(DTYPES)}.")
    if len(words) != 2 or not merge:
        raise ValueError(USAGE)
    folder, target = map(Path, words)
    if target.resolve() == folder.resolve():
        raise ValueError("OUT is the folder of the adapter itself; write another one.")
    return folder, target, dtype
