"""Filters for warnings and logs of libraries that a user of neoplug cannot act on, and for their progress bars."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from logging import getLogger

from huggingface_hub.utils.tqdm import are_progress_bars_disabled
from transformers.utils import logging

# On a CPU with bfloat16, bitsandbytes requests a faster kernel from the hub when peft imports it, and logs the failure.
getLogger("bitsandbytes.backends.cpu.ops").addFilter(lambda record: "gemm_4bit_forward" not in record.getMessage())


@contextmanager
def quiet() -> Iterator[None]:
    """Log only errors of transformers inside the block, and draw progress bars only on a terminal."""
    verbosity, had_bars = logging.get_verbosity(), not are_progress_bars_disabled()
    logging.set_verbosity_error()
    if not sys.stderr.isatty():
        logging.disable_progress_bar()  # of huggingface_hub too
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bars:
            logging.enable_progress_bar()


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Ignore the warnings of peft about what neoplug does on purpose or handles itself; others pass."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*removed in v6", FutureWarning)  # transformers' old names, which peft uses
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        warnings.filterwarnings("ignore", "Model (has|with) `tie_word_embeddings=True`", UserWarning)  # export unties
        for message in ("You have requested `ensure_weight_tying`", "Input and output embeddings are no longer tied"):
            warnings.filterwarnings("ignore", message, UserWarning)  # and ties them again
        warnings.filterwarnings("ignore", "The PEFT config's `base_model_name_or_path`", UserWarning)  # neoplug sets it
        # GPT-2 has layers of both kinds.
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to True but", UserWarning)
        warnings.filterwarnings("ignore", "Specified to not save", UserWarning)  # the recipe sets it
        warnings.filterwarnings("ignore", "Unsupported layer type .*Norm", UserWarning)  # any layer can be copied
        warnings.filterwarnings("ignore", "Sparse invariant checks", UserWarning)  # peft's indices are valid
        for message in ("Failed to load the CUDA extension", "Setting boft_n_butterfly_factor to 1"):
            warnings.filterwarnings("ignore", message, UserWarning)  # the result is the same
        warnings.filterwarnings("ignore", "Position ids are not supported", UserWarning)  # the model computes them
        warnings.filterwarnings("ignore", "Detected that the base layer has no bias", UserWarning)  # export logs it
        # peft sets the rank of fused experts by a pattern that matches no module name.
        warnings.filterwarnings("ignore", "The following (rank|alpha)_pattern keys did not match", RuntimeWarning)
        yield
