"""Fixtures: data sections of recipes, and tokenizers of other families than the tiny models'."""

import pydoc_data.topics

import pytest

PROSE = list(pydoc_data.topics.topics.values())[:20]


@pytest.fixture(scope="session")
def section():
    """Return a function that makes a data section of a recipe from a source and other settings."""

    from neoplug.recipe.schema import Data

    def make(source, **settings):
        return Data(source=str(source), **{"max_length": 128} | settings)

    return make


@pytest.fixture(scope="session")
def trimming_tokenizer():
    """Return a byte-level tokenizer that reports offsets without leading spaces, as GPT-2's and Llama 3's do."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.post_processor = processors.ByteLevel(trim_offsets=True)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        PROSE, trainers.BpeTrainer(vocab_size=320, special_tokens=["<|end|>"], initial_alphabet=alphabet)
    )
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|end|>")


@pytest.fixture(scope="session")
def llama_tokenizer():
    """Return a tokenizer like those of SentencePiece: it adds a space and <s> before a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE(unk_token="<unk>"))
    bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    bpe.decoder = decoders.Metaspace(prepend_scheme="always")
    bpe.train_from_iterator(PROSE, trainers.BpeTrainer(vocab_size=320, special_tokens=["<unk>", "<s>", "</s>"]))
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.fixture(scope="session")
def documents():
    """Return a function: what `fit` returns -> the row's documents, one by one."""
    from neoplug.data import Document

    def documents(fitted):
        found, start = [], 0
        for length, teacher_length in zip(fitted.lengths, fitted.teacher_lengths, strict=True):
            middle, end = start + length, start + length + teacher_length
            ids, mask = fitted.input_ids, fitted.loss_mask
            teacher = (ids[middle:end], mask[middle:end]) if teacher_length else ()
            found.append(Document(ids[start:middle], mask[start:middle], fitted.row, *teacher))
            start = end
        assert start == len(fitted.input_ids) == len(fitted.loss_mask)
        assert [document.answer_tokens for document in found] == fitted.answer_tokens.tolist()
        return found

    return documents
