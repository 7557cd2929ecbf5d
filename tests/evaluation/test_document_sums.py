"""Evaluation sums per document against plain forwards of transformers in float64, and the metrics made of them."""

import hashlib
import math

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM

from neoplug.data.batch import Document
from neoplug.distributed.world import World
from neoplug.evaluation.evaluate import evaluate, held_out_batches, metrics_of
from neoplug.models.verify import head_name, language_model
from neoplug.models.vocabulary import Vocabulary
from neoplug.registry.measures import MEASURES, RANKING
from neoplug.teachers.live import LiveTeacher

LENGTHS = (9, 17, 5, 12, 26)


@pytest.fixture(scope="module")
def modules(tiny_student, tiny_teacher):
    paths = {"student": tiny_student, "teacher": tiny_teacher}
    return {
        role: AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval() for role, path in paths.items()
    }


@pytest.fixture(scope="module")
def models(modules):
    vocabulary = Vocabulary(modules["student"].config.vocab_size)
    return {role: language_model(module, head_name(module), vocabulary) for role, module in modules.items()}


@pytest.fixture(scope="module")
def documents(modules):
    rng, size = np.random.default_rng(0), modules["student"].config.vocab_size
    masks = [np.arange(length) > length // 3 for length in LENGTHS]
    return [
        Document(rng.integers(3, size, length), mask, row=7, number=number)
        for number, (length, mask) in enumerate(zip(LENGTHS, masks, strict=True))
    ]


@torch.no_grad()
def by_hand(student, teacher, document):
    """Return the sums over the answer tokens of one document, by torch's functions on whole float64 logits."""
    ids, mask = torch.from_numpy(document.input_ids), torch.from_numpy(document.loss_mask)
    log_q, log_p = (
        m(input_ids=ids[None]).logits[0, :-1][mask[1:]].double().log_softmax(-1) for m in (student, teacher)
    )
    labels = ids[1:][mask[1:]]
    q, p, y = log_q.exp(), log_p.exp(), functional.one_hot(labels, log_q.shape[-1])
    middle = ((p + q) / 2).log()

    def kl(log_target, log_input):
        return functional.kl_div(log_input, log_target, log_target=True, reduction="sum").item()

    top = p.topk(10).indices
    return {
        "forward_kl": kl(log_p, log_q),
        "reverse_kl": kl(log_q, log_p),
        "jsd": (kl(log_p, middle) + kl(log_q, middle)) / 2,
        "cross_entropy": functional.nll_loss(log_q, labels, reduction="sum").item(),
        "top1_agreement": float((q.argmax(-1) == p.argmax(-1)).sum()),
        "top10_mass": q.gather(-1, top).sum().item(),
        "teacher_top10_mass": p.gather(-1, top).sum().item(),
        "entropy": torch.distributions.Categorical(logits=log_q).entropy().sum().item(),
        "kd_ce_dot": ((q - p) * (q - y)).sum().item(),
        "kd_squared_norm": (q - p).square().sum().item(),
        "ce_squared_norm": (q - y).square().sum().item(),
    }


@pytest.mark.parametrize("size", [1, 2, 5])
def test_each_row_is_the_sum_over_its_document(modules, models, documents, size):
    batches = held_out_batches(documents, size, torch.device("cpu"))
    ours, theirs = evaluate(models["student"], LiveTeacher(models["teacher"]), batches, World("cpu"))
    expected = [by_hand(modules["student"], modules["teacher"], document) for document in documents]
    assert ours.column_names == ["document", "number", "tokens", *expected[0]]
    for row, document, sums in zip(ours.to_pylist(), documents, expected, strict=True):
        assert {name: row[name] for name in sums} == pytest.approx(sums, rel=1e-4, abs=1e-6)
        assert (row["document"], row["number"]) == (document.content_hash, document.number)
        assert row["tokens"] == document.loss_mask[1:].sum()
    assert theirs.column_names == ["document", "number", "tokens", "cross_entropy", "entropy"]
    for row, document in zip(theirs.to_pylist(), documents, strict=True):
        sums = by_hand(modules["teacher"], modules["teacher"], document)
        assert [row[name] for name in ("cross_entropy", "entropy")] == pytest.approx(
            [sums["cross_entropy"], sums["entropy"]], rel=1e-4
        )
    assert [str(field.type) for field in ours.schema] == ["string", "int64", "int64"] + ["double"] * 11


def test_metrics_come_from_the_sums(models, documents):
    batches = held_out_batches(documents, 2, torch.device("cpu"))
    table, _ = evaluate(models["student"], LiveTeacher(models["teacher"]), batches, World("cpu"))
    rows = table.to_pylist()
    total = {name: math.fsum(row[name] for row in rows) for name in table.column_names if name != "document"}
    found = metrics_of(table)
    additive = {measure.name for measure in MEASURES.values() if measure.sums == (measure.name,)}
    assert additive == {"forward_kl", "reverse_kl", "jsd", "cross_entropy", "top1_agreement", "entropy"}
    expected = {name: total[name] / total["tokens"] for name in additive} | {
        "perplexity": math.exp(total["cross_entropy"] / total["tokens"]),
        "top10_mass_share": total["top10_mass"] / total["teacher_top10_mass"],
        "kd_ce_cosine": total["kd_ce_dot"] / math.sqrt(total["kd_squared_norm"] * total["ce_squared_norm"]),
    }
    assert found == pytest.approx(expected, rel=1e-12)


def test_a_subset_of_documents_has_metrics_too(models, documents):
    table, _ = evaluate(models["student"], None, held_out_batches(documents, 2, torch.device("cpu")), World("cpu"))
    alone, _ = evaluate(models["student"], None, held_out_batches(documents[2:3], 2, torch.device("cpu")), World("cpu"))
    assert metrics_of(table.slice(2, 1)) == pytest.approx(metrics_of(alone), rel=1e-5)


def test_evaluation_returns_the_metrics_of_the_list(models, documents):
    batches = held_out_batches(documents, 2, torch.device("cpu"))
    ours, theirs = evaluate(models["student"], LiveTeacher(models["teacher"]), batches, World("cpu"))
    without, absent = evaluate(models["student"], None, batches, World("cpu"))
    alone = [name for name, measure in MEASURES.items() if not measure.needs_teacher]
    assert list(metrics_of(ours)) == list(MEASURES)
    assert list(metrics_of(theirs)) == list(metrics_of(without)) == alone
    assert absent is None


def test_the_direction_of_each_metric_is_towards_the_teacher_or_the_text(models, documents):
    """What compares with the teacher is best for the teacher itself; what does not is best for the likelier text."""
    batches = held_out_batches(documents, 5, torch.device("cpu"))
    teacher = LiveTeacher(models["teacher"])
    ours, theirs = evaluate(models["student"], teacher, batches, World("cpu"))
    ideal, _ = evaluate(models["teacher"], teacher, batches, World("cpu"))
    far, near, text = metrics_of(ours), metrics_of(ideal), metrics_of(theirs)
    for name, measure in RANKING.items():
        if measure.needs_teacher:
            assert (near[name] > far[name]) == measure.greater_is_better, name
            assert near[name] != far[name], name
        else:
            likelier = (text[name] > far[name]) == measure.greater_is_better
            assert likelier == (text["cross_entropy"] < far["cross_entropy"]), name


def test_a_number_that_is_not_finite_stays_in_its_document(models, documents):
    class Lost(LiveTeacher):
        """A teacher that is NaN on the third document."""

        def signal(self, batch):
            signal = super().signal(batch)
            signal.states[batch.document_index == 2] = math.nan
            return signal

    batches = held_out_batches(documents, 5, torch.device("cpu"))
    table, _ = evaluate(models["student"], Lost(models["teacher"]), batches, World("cpu"))
    assert [math.isnan(value) for value in table["forward_kl"].to_pylist()] == [False, False, True, False, False]
    assert not any(map(math.isnan, table["cross_entropy"].to_pylist()))


def test_the_content_hash_identifies_the_text(models, documents):
    """The documented format, computed by hand: the key by which evaluations of several runs are joined."""
    table, _ = evaluate(models["student"], None, held_out_batches(documents, 2, torch.device("cpu")), World("cpu"))
    for name, document in zip(table["document"].to_pylist(), documents, strict=True):
        ids, mask = document.input_ids.astype("<i8"), document.loss_mask[1:].astype("u1")
        text = len(ids).to_bytes(8, "little") + ids.tobytes() + mask.tobytes()
        assert name == hashlib.sha256(b"neoplug.Document 1" + text).hexdigest()
