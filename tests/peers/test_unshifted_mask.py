"""LLM-Neo's code and DistillKit mask the divergence at the labels' own positions, one after those that predict them.

So the token after an answer is distilled, and the first token of the answer is not.
"""

import torch
from torch.nn import functional

from neoplug.data.batch import collate
from neoplug.teachers.live import LiveTeacher
from neoplug.training.objective import objective
from neoplug_losses.forward_kl import ForwardKL


def test_the_divergence_is_at_the_positions_that_predict_answer_tokens(model, losses, document):
    student, teacher = model("student"), model("teacher")
    documents = [document(12, range(5, 9)), document(8, [1, 2, 6], row=1)]
    batch = collate(documents)
    with torch.no_grad():
        named = losses(forward_kl=(1.0, ForwardKL()))
        _, values = objective(
            named, student.hidden(batch), student.head, LiveTeacher(teacher).signal(batch), batch.labels, 0.0
        )
        everywhere = []
        for each in documents:
            ids = torch.from_numpy(each.input_ids)[None]
            log_q, log_p = (m.module(input_ids=ids).logits[0].double().log_softmax(-1) for m in (student, teacher))
            everywhere.append(functional.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1))
    masks = [torch.from_numpy(each.loss_mask) for each in documents]
    shifted = torch.cat([kl[:-1][mask[1:]] for kl, mask in zip(everywhere, masks, strict=True)])
    unshifted = torch.cat([kl[mask] for kl, mask in zip(everywhere, masks, strict=True)])
    torch.testing.assert_close(values[0].double(), shifted, rtol=1e-4, atol=1e-5)
    assert (shifted - unshifted).abs().min() > 1e-3
