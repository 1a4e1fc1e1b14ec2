"""Messages of libraries that tell a user of lit-rl nothing: advertisements, missing devices, advice that does not apply."""

from __future__ import annotations

import logging
import warnings

import transformers

# Each by the logger that it comes from and by its beginning, so that nothing else is lost.
_MESSAGES = {
    "lightning.pytorch.utilities.rank_zero": (
        "💡 Tip: ",
        "GPU available: ",
        "TPU available: ",
        "HPU available: ",
    ),
    "lightning.fabric.utilities.seed": ("Seed set to ", "[rank: "),
    "bitsandbytes.backends.cpu.ops": ("Failed to load CPU gemm_4bit_forward",),
}
_WARNINGS = (
    # Generated problems are cheap: workers would cost more than they give.
    r"The '\w+' does not have many workers",
    # Files of earlier runs: lit-rl never writes over one.
    r"Checkpoint directory .* exists and is not empty",
    # Metrics of an evaluation are those of all ranks before they are logged.
    r"It is recommended to use `self.log\('(val|test)/.*sync_dist=True",
    # Lightning's own use of torch.
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    # Metrics are logged at every step on purpose.
    r"The number of training batches \(\d+\) is smaller than the logging interval",
)


def quiet_start() -> None:
    """Leave these messages out from now on."""
    for name, beginnings in _MESSAGES.items():
        logger = logging.getLogger(name)
        if not any(isinstance(each, _Without) for each in logger.filters):
            logger.addFilter(_Without(beginnings))
    for message in _WARNINGS:
        warnings.filterwarnings("ignore", message=f".*{message}")
    # Bars of a second or less, for the files of each export.
    transformers.utils.logging.disable_progress_bar()


class _Without(logging.Filter):
    def __init__(self, beginnings: tuple[str, ...]) -> None:
        super().__init__()
        self.beginnings = beginnings

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(self.beginnings)
