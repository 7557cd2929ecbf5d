"""Preview of treated rows: it is the batch that the first step trains, recorded there by a plugin called last."""

import pytest
import torch
from transformers import AutoTokenizer

from neoplug import recipe as recipes
from neoplug.errors import PluginError
from neoplug.runs.preview import preview

PLUGINS = """
@dataclass(eq=False)
class Record:
    '''Writes each micro-batch to a new file of the folder.'''

    folder: str

    def write(self, batch):
        number = len(list(Path(self.folder).iterdir()))
        values = {name: getattr(batch, name) for name in ("input_ids", "lengths", "positions", "labels", "rows")}
        torch.save(values, Path(self.folder) / f"{number:03}.pt")


@dataclass(eq=False)
class Last(Record):
    @hookimpl(trylast=True)
    def edit_batch(self, batch):
        self.write(batch)


@dataclass(eq=False)
class First(Record):
    @hookimpl(tryfirst=True)
    def edit_batch(self, batch):
        self.write(batch)


@dataclass(eq=False)
class Blank:
    '''Replaces some input tokens, at random, with one token.'''

    token: int

    @hookimpl
    def edit_batch(self, batch, rng):
        hit = torch.rand(len(batch.input_ids), generator=rng) < 0.1
        batch.input_ids = torch.where(hit, self.token, batch.input_ids)


@dataclass(eq=False)
class DropOdd:
    '''Drops the answers of rows with an odd number.'''

    @hookimpl
    def edit_batch(self, batch):
        keep = batch.rows % 2 == 0
        batch.positions, batch.labels, batch.rows = batch.positions[keep], batch.labels[keep], batch.rows[keep]


@dataclass(eq=False)
class Cut:
    '''Removes all documents but the first, or the second half of the first.'''

    documents: bool

    @hookimpl
    def edit_batch(self, batch):
        first, place = batch.lengths[0], torch.arange(len(batch.input_ids))
        kept = place < first if self.documents else (place < first // 2) | (place >= first)
        batch.lengths = [first] if self.documents else [first // 2, *batch.lengths[1:]]
        answers = kept[batch.positions]
        batch.positions = (kept.cumsum(0) - 1)[batch.positions[answers]]
        batch.labels, batch.rows = batch.labels[answers], batch.rows[answers]
        batch.input_ids = batch.input_ids[kept]


@dataclass(eq=False)
class Faulty:
    @hookimpl
    def edit_batch(self, batch):
        raise KeyError("model")
"""


@pytest.fixture
def treated(lab):
    """Return a function that writes a recipe with treatments between two recorders, and their folders."""
    lab.plugin("treat", PLUGINS)

    def write(name, treatments, **sections):
        folders = [lab.folder / name / side for side in ("before", "after")]
        for folder in folders:
            folder.mkdir(parents=True)
        recorders = zip(("First", "Last"), folders, strict=True)
        recording = {f"./treat.py:{recorder}": {"folder": str(folder)} for recorder, folder in recorders}
        return lab.recipe(name, treatments=recording | treatments, **sections), folders

    return write


def recorded(folder):
    return [torch.load(file) for file in sorted(folder.iterdir())]


def text_of(batch, tokenizer):
    """Return the documents of a recorded batch with the tokens that are labels in guillemets, one by one."""
    scored = {int(position) + 1 for position in batch["positions"]}
    tokens = [tokenizer.decode([token]) for token in batch["input_ids"].tolist()]
    marked = [f"«{token}»" if at in scored else token for at, token in enumerate(tokens)]
    ends = torch.tensor(batch["lengths"]).cumsum(0).tolist()
    return ["".join(marked[start:end]) for start, end in zip([0, *ends], ends, strict=False)]


def shown_text(row):
    """Return the documents of a row of a preview, marked likewise, with neighbouring marks joined."""
    return ["".join(f"«{text}»" if scored else text for text, scored in found.student) for found in row.documents]


@pytest.mark.parametrize("packing", [False, True])
def test_a_preview_shows_the_batches_that_the_first_steps_train(lab, treated, packing, tiny_student):
    """Every micro-batch of two steps, before and after, bit for bit; and its text, by the tokenizer alone."""
    treatments = {"label_noise": {"probability": 0.3}, "./treat.py:Blank": {"token": 5}, "./treat.py:DropOdd": {}}
    sections = {"data": {"packing": packing, "max_length": 200}, "train": {"max_steps": 2}}
    run, folders = treated("trained", treatments, **sections)
    file, shown_folders = treated("shown", treatments, **sections)
    lab.run("run", run)
    rows = preview(recipes.load(file), rows=8).rows
    for folder, shown_folder in zip(folders, shown_folders, strict=True):
        for trained, shown in zip(recorded(folder), recorded(shown_folder), strict=True):
            assert trained["lengths"] == shown["lengths"]
            for name in ("input_ids", "positions", "labels", "rows"):
                assert torch.equal(trained[name], shown[name])
    tokenizer = AutoTokenizer.from_pretrained(tiny_student)
    before, after = (recorded(folder) for folder in folders)
    assert [text for row in rows for text in shown_text(row)] == [
        text.replace("»«", "") for batch in after for text in text_of(batch, tokenizer)
    ]
    assert sum(row.scored for row in rows) == sum(len(batch["labels"]) for batch in after)
    odd = {row for batch in before for row in batch["rows"].tolist() if row % 2}
    assert packing or sum(row.emptied for row in rows) == len(odd) > 0
    lines = [line for row in rows for line in row.changes]
    read = sum(int((old["input_ids"] != new["input_ids"]).sum()) for old, new in zip(before, after, strict=True))
    assert sum("is read as" in line for line in lines) == read > 0
    dropped = sum(len(old["labels"]) - len(new["labels"]) for old, new in zip(before, after, strict=True))
    assert sum("is not scored" in line for line in lines) == dropped > 0
    labels = 0
    for old, new in zip(before, after, strict=True):
        was = dict(zip(old["positions"].tolist(), old["labels"].tolist(), strict=True))
        labels += sum(
            was[p] != label for p, label in zip(new["positions"].tolist(), new["labels"].tolist(), strict=True)
        )
    assert sum("has the label" in line for line in lines) == labels > 0


def test_a_changed_label_is_named_with_its_place(treated, tiny_student):
    file, folders = treated("noise", {"label_noise": {"probability": 0.2}})
    (row,) = preview(recipes.load(file), rows=1).rows
    tokenizer = AutoTokenizer.from_pretrained(tiny_student)
    before, after = (recorded(folder)[0] for folder in folders)
    expected = []
    for position, old, new in zip(
        before["positions"].tolist(), before["labels"].tolist(), after["labels"].tolist(), strict=True
    ):
        if old != new and position < before["lengths"][0]:
            names = tokenizer.convert_ids_to_tokens([new, old])
            expected.append(f"token {position + 1} has the label {names[0]!r}, before {names[1]!r}")
    assert row.changes == expected != []


def test_rows_without_a_treatment_are_the_first_of_the_data(lab):
    shown = preview(recipes.load(lab.recipe(treatments={})), rows=2)
    first = [text.partition(" plus ")[0].rpartition(" ")[2] for row in shown.rows for text in shown_text(row)]
    assert first == sorted(first, key=int)
    assert int(first[0]) < 3  # three rows are held out
    assert [row.changes for row in shown.rows] == [[], []]
    assert shown.treatments == ()


@pytest.mark.parametrize("documents", [True, False])
def test_a_treatment_may_change_lengths_and_documents(treated, documents):
    file, folders = treated("cut", {"./treat.py:Cut": {"documents": documents}}, data={"packing": documents})
    rows = preview(recipes.load(file), rows=2).rows
    before, after = ([row["lengths"] for row in recorded(folder)[:2]] for folder in folders)  # of one micro-batch
    if documents:
        change = f"2 documents, before {sum(map(len, before))}"
        assert [(row.rows, row.tokens, row.changes) for row in rows[:1]] == [(2, sum(map(sum, after)), [change])]
        assert sum(map(len, before)) > 2
    else:
        lengths = [(old, new) for (old,), (new,) in zip(before, after, strict=True)]
        assert [row.changes for row in rows] == [
            [f"the document has {new} tokens, before {old}"] for old, new in lengths
        ]
        assert [row.tokens for row in rows] == [new for _, new in lengths]


def test_a_treatment_that_fails_is_blamed(treated):
    file, _ = treated("faulty", {"./treat.py:Faulty": {}})
    with pytest.raises(PluginError, match="Faulty"):
        preview(recipes.load(file), rows=1)
