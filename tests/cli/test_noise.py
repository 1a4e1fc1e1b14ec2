"""Messages of libraries at the start: advertisements are left out, everything else stays."""

import logging
import warnings

import pytest

from lit_rl.cli.noise import quiet_start


@pytest.mark.parametrize(
    ("logger", "text", "shown"),
    [
        ("lightning.pytorch.utilities.rank_zero", "💡 Tip: For seamless cloud logging, try installing litlogger", False),
        ("lightning.pytorch.utilities.rank_zero", "GPU available: False, used: False", False),
        ("lightning.pytorch.utilities.rank_zero", "Restored all states from the checkpoint at x.ckpt", True),
        ("lightning.fabric.utilities.seed", "Seed set to 1", False),
        ("bitsandbytes.backends.cpu.ops", "Failed to load CPU gemm_4bit_forward from kernels-community: x", False),
        ("bitsandbytes.backends.cpu.ops", "Failed to load anything else", True),
    ],
)
def test_a_message_is_left_out_by_its_origin_and_beginning(caplog, logger, text, shown):
    quiet_start()
    logging.getLogger(logger).addHandler(caplog.handler)
    logging.getLogger(logger).setLevel(logging.INFO)
    logging.getLogger(logger).info(text)
    logging.getLogger(logger).removeHandler(caplog.handler)
    assert (text in caplog.text) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("The 'val_dataloader' does not have many workers which may be a bottleneck.", False),
        ("Checkpoint directory /x exists and is not empty.", False),
        ("Improvement: no evaluation followed the baseline", True),
    ],
)
def test_a_warning_is_left_out_by_its_beginning(text, shown):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quiet_start()
        warnings.warn(text, stacklevel=1)
    assert bool(caught) == shown
