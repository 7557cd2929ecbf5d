"""Keep transformers' warnings out of sight while a model is read or written; off a terminal its progress bars too."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.utils import are_progress_bars_disabled
from transformers.utils import logging


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
