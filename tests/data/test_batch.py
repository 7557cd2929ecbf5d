"""Batches: copies between devices, of which only those to the CPU block the host, and positions in answers."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode

from neoplug.data.batch import Batch, Document, TeacherText, collate, concatenated, positions_in_answers


class Copies(TorchFunctionMode):
    """Records the argument `non_blocking` of each `Tensor.to`."""

    def __init__(self):
        super().__init__()
        self.non_blocking = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.to:
            self.non_blocking.append(kwargs["non_blocking"])
        return function(*args, **(kwargs or {}))


def test_only_a_copy_to_the_cpu_blocks():
    numbers = torch.arange(4)
    batch = Batch(numbers, [4], numbers, numbers, numbers, TeacherText(numbers, [4], numbers))
    for device, non_blocking in (("cpu", False), ("meta", True)):
        with Copies() as copies:
            moved = batch.to(device)
        assert copies.non_blocking == [non_blocking] * 6
        assert moved.input_ids.device.type == moved.teacher.position_map.device.type == device


@settings(deadline=None, max_examples=50)
@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=9), min_size=1, max_size=4))
def test_positions_in_answers_count_from_the_first_token_of_each_turn(masks):
    documents = [Document(np.arange(len(mask)), np.array(mask), row=0) for mask in masks]
    found = positions_in_answers(documents)[collate(documents).positions].tolist()
    expected = []
    for mask in masks:
        turn = -1
        for scored in mask[1:]:  # nothing predicts the first token
            turn = turn + 1 if scored else -1
            expected += [turn] if scored else []
    assert found == expected


masks = st.lists(st.booleans(), min_size=1, max_size=9).map(np.array)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.lists(st.tuples(masks, st.booleans()), min_size=1, max_size=3), min_size=1, max_size=4))
def test_batches_of_rows_joined_are_the_batch_of_all_their_documents(rows):
    """Some documents have a prompt of the teacher's own, which is longer."""
    documents = [
        [
            Document(
                np.arange(len(mask)), mask, row, *((np.arange(-2, len(mask)), np.append([False] * 3, mask[1:])) * own)
            )
            for mask, own in row_of_masks
        ]
        for row, row_of_masks in enumerate(rows)
    ]
    found = concatenated([collate(row) for row in documents])
    expected = collate([document for row in documents for document in row])
    assert found.documents == expected.documents
    for one, other in ((found, expected), (found.for_teacher(), expected.for_teacher())):
        assert one.lengths == other.lengths
        for name in ("input_ids", "positions", "labels", "rows"):
            assert torch.equal(getattr(one, name), getattr(other, name))
