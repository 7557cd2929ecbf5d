"""Keep what libraries say to their own developers out of sight; off a terminal progress bars too."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from logging import getLogger

from huggingface_hub.utils import are_progress_bars_disabled
from transformers.utils import logging

# Where a CPU knows bfloat16, bitsandbytes looks for a faster kernel on the hub as it is imported, which peft does.
getLogger("bitsandbytes.backends.cpu.ops").addFilter(lambda said: "gemm_4bit_forward" not in said.getMessage())


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers inside the block; errors still get through, and on a terminal so do the bars."""
    verbosity, bars = logging.get_verbosity(), not are_progress_bars_disabled()
    logging.set_verbosity_error()
    if not sys.stderr.isatty():
        logging.disable_progress_bar()  # the hub's too
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Hide what peft says of models that are wrapped, loaded and saved as neoplug means it: no user could act on it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*removed in v6", FutureWarning)  # transformers' old names
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        warnings.filterwarnings("ignore", "Model (has|with) `tie_word_embeddings=True`", UserWarning)  # export unties
        for said in ("You have requested `ensure_weight_tying`", "Input and output embeddings are no longer tied"):
            warnings.filterwarnings("ignore", said, UserWarning)  # export ties them again
        warnings.filterwarnings("ignore", "The PEFT config's `base_model_name_or_path`", UserWarning)  # we tell it
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to True but", UserWarning)  # GPT-2 has both kinds
        warnings.filterwarnings("ignore", "Specified to not save", UserWarning)  # projections: the recipe asked for it
        warnings.filterwarnings("ignore", "Unsupported layer type .*Norm", UserWarning)  # a copy of any layer trains
        warnings.filterwarnings("ignore", "Sparse invariant checks", UserWarning)  # peft's indices are sound
        for said in ("Failed to load the CUDA extension", "Setting boft_n_butterfly_factor to 1"):
            warnings.filterwarnings("ignore", said, UserWarning)  # it computes the same without, and needs 1 anyway
        warnings.filterwarnings("ignore", "Position ids are not supported", UserWarning)  # the model counts them itself
        warnings.filterwarnings("ignore", "Detected that the base layer has no bias", UserWarning)  # export says so
        # Peft itself sets the rank of fused experts by a pattern, then misses a module of that name.
        warnings.filterwarnings("ignore", "The following (rank|alpha)_pattern keys did not match", RuntimeWarning)
        yield
