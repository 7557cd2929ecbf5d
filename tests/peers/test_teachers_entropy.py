"""torchtune and DistiLLM call a cross-entropy "forward KL": without the teacher's entropy it does not reach 0."""

import pytest

from neoplug.data.batch import collate
from neoplug.distributed.world import World
from neoplug.evaluation.evaluate import evaluate, metrics_of
from neoplug.teachers.live import LiveTeacher
from neoplug.training.objective import objective
from neoplug_losses.forward_kl import ForwardKL


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_forward_kl_is_zero_where_student_and_teacher_agree(model, losses, document, temperature):
    student, teacher = model("teacher"), model("teacher")
    batch = collate([document(40, range(3, 39))])
    named = losses(forward_kl=(1.0, ForwardKL(temperature)))
    hidden = student.hidden(batch).detach().requires_grad_()
    total, values = objective(named, hidden, student.head, LiveTeacher(teacher).signal(batch), batch.labels, 0.0)
    total.backward()
    assert values.abs().max() < 1e-6
    assert hidden.grad.abs().max() < 1e-6
    log_p = student.head(hidden.detach()).log_softmax(-1)
    assert -(log_p.exp() * log_p).sum(-1).mean() > 0.5  # the entropy that a cross-entropy would keep


def test_evaluation_measures_zero_where_student_and_teacher_agree(model, document):
    batches = [collate([document(40, range(3, 39))])]
    table, _ = evaluate(model("teacher"), LiveTeacher(model("teacher")), batches, World("cpu"))
    found = metrics_of(table)
    assert abs(found["forward_kl"]) < 1e-6
    assert abs(found["reverse_kl"]) < 1e-6
    assert found["top1_agreement"] == 1
    assert found["cross_entropy"] > 1
