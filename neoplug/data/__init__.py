"""From a source's rows to the documents of each micro-batch. Knows nothing of models."""

from neoplug.data.batch import Batch, Document, Layout, collate
from neoplug.data.dataset import Corpus, check_source, load_corpus, read_corpus
from neoplug.data.encode.lengths import idle
from neoplug.data.sampler import Order
from neoplug.data.preview_text import pieces
from neoplug.data.ingest.report import Report
from neoplug.data.encode.teacher_prompt import teacher_prompt

__all__ = [
    "Batch",
    "Corpus",
    "Document",
    "Layout",
    "Order",
    "Report",
    "check_source",
    "collate",
    "idle",
    "load_corpus",
    "pieces",
    "read_corpus",
    "teacher_prompt",
]
