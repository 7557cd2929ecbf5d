"""From the rows of a source to the documents of each micro-batch: reading, encoding, token cache, sampling, batches.

Imported by `models` and the layers above it. Does not belong here: models and teachers; a batch's layouts are defined
here (`batch`), but which of them a model supports is verified in `models`.
"""

from neoplug.data.batch import Batch, Document, Layout, collate
from neoplug.data.dataset import Corpus, check_local_sources, load_corpus, load_unvalidated_corpus
from neoplug.data.encode.lengths import without_answers
from neoplug.data.encode.teacher_encoder import teacher_encoder
from neoplug.data.ingest.report import Report
from neoplug.data.preview_text import pieces
from neoplug.data.sampler import BatchSampler

__all__ = [
    "Batch",
    "BatchSampler",
    "Corpus",
    "Document",
    "Layout",
    "Report",
    "check_local_sources",
    "collate",
    "load_corpus",
    "load_unvalidated_corpus",
    "pieces",
    "teacher_encoder",
    "without_answers",
]
