"""The schema of recipes: sections, keys, types and ranges. Names and meanings are transformers' where it has them."""

from datetime import date
from importlib.util import find_spec
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator
from pydantic.fields import FieldInfo

from neoplug.errors import Path as Key
from neoplug.errors import did_you_mean
from neoplug.recipe.reference import Reference, Target
from neoplug.recipe.section import Positive, Section, Text
from neoplug.registry.measures import RANKING

Options = dict[str, dict[str, Any]]  # a plugin map: name in the recipe -> options
Column = Literal[
    "messages",
    "tools",
    "chat_template_kwargs",
    "system",
    "history",
    "prompt",
    "completion",
    "instruction",
    "input",
    "output",
    "text",
]

DEVICES = ["cpu", "cuda", "cuda:0"]
RANKED = "; ".join(
    f"{name}: {measure.title}, {'greater' if measure.greater_is_better else 'smaller'} is better"
    + (", needs a teacher" if measure.needs_teacher else "")
    for name, measure in RANKING.items()
)
TRACKERS = ("tensorboard", "trackio", "wandb", "mlflow")

# Maps of plugins. A child's replaces the parent's, and an empty value in one means "no options".
PLUGIN_MAPS: dict[tuple[str, ...], str] = {
    ("adapter",): "adapter",
    ("loss",): "loss",
    ("token_weights",): "token_weights",
    ("optimizer",): "optimizer",
    ("schedule",): "schedule",
    ("stops",): "stops",
    ("treatments",): "treatments",
    ("probes",): "probes",
    ("trackers",): "trackers",
    ("teacher", "load"): "teacher.load",
    ("teacher", "cache"): "teacher.cache",
    ("student", "load"): "student.load",
    ("student", "prepare"): "student.prepare",
}


def is_source(path: Key) -> bool:
    """Return whether a recipe names a source of rows at `path`: as text, or as a map of one plugin."""
    is_named = len(path) == 4 and path[:2] == ("data", "sources")
    return path[-1:] == ("source",) if is_named else path in (("data", "source"), ("data", "eval_source"))


def is_plugin_map(path: Key) -> bool:
    """Return whether a map at `path` is one of plugins."""
    return path in PLUGIN_MAPS or is_source(path)


def plugin_map_at(path: Key) -> Key | None:
    """Return the map of plugins at the beginning of `path`, which may be all of it; None where there is none."""
    beginnings = (path[:length] for length in range(1, len(path) + 1))
    return next(filter(is_plugin_map, beginnings), None)


class Model(Section):
    """A model: a hub id, a folder, a GGUF file or `pypi:DIST==VERSION/FILE`; and the plugins that load it.

    revision           the commit, branch or tag of a model of the hub
    adapter_path       a peft adapter on top, a folder or a hub id: the teacher has it, the student starts from it
    adapter_revision   the commit, branch or tag of an adapter of the hub
    trust_remote_code  run Python files of the model's repository; needed by a family that transformers does not have
    """

    model: Text | None = None
    revision: Text | None = None
    dtype: Literal["float32", "bfloat16"] | None = None
    device: Annotated[str, Field(pattern=r"^(cpu|(cuda|xpu|npu)(:[0-9]+)?)$")] | None = Field(None, examples=DEVICES)
    attn_implementation: Text | None = None
    adapter_path: Text | None = None
    adapter_revision: Text | None = None
    trust_remote_code: bool = False
    load: Options = {}


class Teacher(Model):
    """The teacher: a `model`, or with `self` the student itself. `chat_template`: how it formats the prompts.

    `self: base` is the student's base, with the adapter off; `self: ema` the student with an exponential moving average
    of its trained weights, of which a step keeps the share `decay` (at least 0, below 1; 0.999 if left out).
    `chat_template`: `own` is the template of its tokenizer; else Jinja text or the path of a file. None: it reads the
    student's tokens. The answers are always the student's tokens.
    `cache`: the kind in which the teacher's output is stored, once for all runs that train on the same text. A folder
    in which it is stored already needs no `model`.
    `max_segmentation_difference`: the share of documents that its tokenizer may split into other tokens, from 0 to 1.
    """

    itself: Literal["base", "ema"] | None = Field(None, alias="self")
    decay: Annotated[float, Field(ge=0, lt=1)] | None = None
    chat_template: Text | None = None
    max_segmentation_difference: Annotated[float, Field(ge=0, le=1)] = 0.01
    cache: Options = {}

    @model_validator(mode="before")
    @classmethod
    def _usual_decay(cls, values: Any) -> Any:
        is_average = isinstance(values, dict) and values.get("self") == "ema"
        return {"decay": 0.999, **values} if is_average else values


# Keys of which `teacher` needs one, and the keys that are valid with `self`; the others describe a model.
SOURCES_OF_TEACHER = ("model", "self", "cache")
VALID_WITH_SELF = ("self", "decay", "chat_template")


class Student(Model):
    """The student; `prepare` names plugins that change the model once, before it is loaded."""

    model: Text
    prepare: Options = {}


class SourceRows(Section):
    """Which rows of a source are read, and how. `streaming` reads the first `max_rows` and downloads no others.

    `name`: the configuration of a hub dataset or of a folder; `revision`: the commit, tag or branch of a hub dataset.
    """

    name: Text | None = None
    revision: Text | None = None
    split: Text = "train"
    columns: dict[Column, Text] = {}
    streaming: bool = False
    max_rows: Positive | None = None

    @model_validator(mode="after")
    def _stream_has_an_end(self) -> Self:
        if self.streaming and self.max_rows is None:
            raise ValueError("`streaming` needs `max_rows`: the first rows of the stream are the training data")
        return self


class Source(SourceRows):
    """One of several sources. `weight`: its share of an epoch's rows; all sources have one, or none has."""

    source: Text | Options
    weight: Annotated[float, Field(gt=0)] | None = None


class Data(SourceRows):
    """The text. `held_out`: rows (from 1) or a share (below 1); None is 5 % of the rows, at most 200, at least 1.

    One `source`, or several `sources` by names of your choice; each is a text, or a plugin with its options. `split`,
    `columns`, `streaming` and `max_rows` are those of the one source, and of `eval_source`, unless `eval_split` names
    another split; alone, that is one of the source.
    `name` and `revision` are those of the one source, and of an `eval_source` that is the same dataset, unless
    `eval_revision` names another commit, tag or branch.
    `chat_template_kwargs`: options of the chat template, such as `enable_thinking: false`; those of a row come first.
    `max_dropped_rows`: the share of a source's rows that may be unusable, from 0 to 1; more of them end the run.
    `chat_template_date`: the date that a chat template reads, as YYYY-MM-DD; None is the day on which the run starts.
    `keep_incomplete_rows`: train on rows of which the chat template leaves something out, such as tools or a thought.
    """

    source: Text | Options | None
    sources: Annotated[dict[Text, Source], Field(min_length=1)] | None = None
    max_length: Annotated[int, Field(ge=2)] = 1024
    packing: bool = True
    train_on: Literal["answers", "all", "last"] = "answers"
    held_out: int | float | None = None
    eval_source: Text | Options | None = None
    eval_revision: Text | None = None
    eval_split: Text | None = None
    chat_template: Text | None = None
    chat_template_kwargs: dict[Text, Any] = {}
    chat_template_date: Text | None = Field(None, examples=["2026-01-31"])
    keep_incomplete_rows: bool = False
    max_dropped_rows: Annotated[float, Field(ge=0, le=1)] = 0.05

    @field_validator("chat_template_date")
    @classmethod
    def _a_date(cls, day: str | None) -> str | None:
        try:
            return None if day is None else date.fromisoformat(day).isoformat()
        except ValueError as error:
            raise ValueError(f"`chat_template_date` is {day}, but a date is YYYY-MM-DD, as 2026-01-31") from error

    @field_validator("held_out")
    @classmethod
    def _rows_or_share(cls, held_out: int | float | None) -> int | float | None:
        if isinstance(held_out, int) and held_out < 1:
            raise ValueError(f"`held_out` is {held_out}, but must be at least 1 row, or a share between 0 and 1")
        if isinstance(held_out, float) and not 0 < held_out < 1:
            raise ValueError(f"`held_out` is {held_out}, but a share lies between 0 and 1; rows are a whole number")
        return held_out

    @field_validator("sources")
    @classmethod
    def _all_weights_or_none(cls, sources: dict[str, Source] | None) -> dict[str, Source] | None:
        weighted = [name for name, source in (sources or {}).items() if source.weight is not None]
        if weighted and len(weighted) < len(sources or {}):
            rest = ", ".join(name for name in sources or {} if name not in weighted)
            raise ValueError(f"of the `sources`, {', '.join(weighted)} has a weight and {rest} has none")
        return sources

    @model_validator(mode="before")
    @classmethod
    def _one_or_several(cls, values: Any) -> Any:
        several = isinstance(values, dict) and values.get("sources")
        return {"source": None, **values} if several else values

    @model_validator(mode="after")
    def _whole_sources(self) -> Self:
        given = [f"`{name}`" for name, field in SourceRows.model_fields.items() if getattr(self, name) != field.default]
        if self.sources and self.eval_source is None and given:
            raise ValueError(f"{', '.join(given)}: set it for each of the `sources`")
        if self.eval_split and self.eval_source is None and (self.sources or self.eval_split == self.split):
            which = "belongs to no one source" if self.sources else "is the split that is trained on"
            raise ValueError(f"`eval_split` is {self.eval_split}, which {which}; `eval_source` names its source")
        if self.eval_revision and self.eval_source is None:
            raise ValueError("`eval_revision` is that of an `eval_source`, and the recipe names none")
        return self

    @property
    def parts(self) -> dict[str, Source]:
        """The sources by name, sorted; the name of an only one is empty."""
        if self.sources:
            return dict(sorted(self.sources.items()))
        return {"": self.read_like(self.source or "")}

    def read_like(self, source: str | Options, split: str | None = None) -> Source:
        """Return a source that is read like the only one of this section, or another split of it."""
        same = {name: getattr(self, name) for name in ("columns", "streaming", "max_rows")}
        if source == self.source:
            same |= {"name": self.name, "revision": self.revision}
        return Source(source=source, split=split or self.split, **same)


class Train(Section):
    """The training loop. Without `max_steps` and `num_train_epochs` it runs one epoch.

    `lr_scheduler_type`: the plugin that sets the learning rate, without options; the section `schedule` names one with
    options. None: that of `schedule`, else `cosine`. `constant` has no warm-up.

    `log_gradient_norms`: at logging steps, the gradient norm of each loss alone; takes one more forward pass, and one
    backward pass a loss.

    `ddp_timeout`: seconds in which all processes of a run must take part in what they compute together; where one does
    not, the others end.

    `shard`: what is divided over the processes of `torchrun`: `base`, the frozen weights of both models' layers;
    `full`, the trained weights of the student too, for full fine-tuning. A resumed run may have another value.

    `full_determinism`: only algorithms that give the same values each time, which may be slower on a GPU; an operator
    that has none ends the run.
    """

    max_steps: Annotated[int, Field(ge=1, le=10**15)] | None = None
    num_train_epochs: Annotated[float, Field(gt=0, le=1e6)] | None = None
    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    per_device_train_batch_size: Positive = 4
    gradient_accumulation_steps: Positive = 1
    lr_scheduler_type: Text | None = None
    warmup_steps: Annotated[float, Field(ge=0)] = 0.1
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    gradient_checkpointing: bool = False
    shard: Literal["none", "base", "full"] = "none"
    logging_steps: Positive = 10
    log_gradient_norms: bool = False
    save_steps: Positive = 500
    save_total_limit: Positive | None = None
    ddp_timeout: Positive = 1800
    full_determinism: bool = False

    @field_validator("warmup_steps")
    @classmethod
    def _share_or_steps(cls, warmup_steps: float) -> float:
        if warmup_steps > 1 and not warmup_steps.is_integer():
            raise ValueError(f"`warmup_steps` is {warmup_steps}, but above 1 it is a whole number of steps")
        return warmup_steps

    @model_validator(mode="before")
    @classmethod
    def _one_epoch(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        lengths = [name for name in ("max_steps", "num_train_epochs") if values.get(name) is not None]
        if len(lengths) == 2:
            raise ValueError("`max_steps` and `num_train_epochs` both set how long to train; keep one")
        return values if lengths else {**values, "num_train_epochs": 1.0}


class Evaluate(Section):
    """Evaluation on held-out text. `eval_steps` None: before and after training only.

    `metric_for_best_model`: an evaluation metric, or `probes.NAME.KEY`; `greater_is_better`: None is the metric's own.
    """

    eval_steps: Positive | None = None
    per_device_eval_batch_size: Positive = 4
    metric_for_best_model: Text | None = Field(default=None, examples=[*RANKING, "probes.NAME.KEY"], description=RANKED)
    greater_is_better: bool | None = None
    load_best_model_at_end: bool = False
    early_stopping_patience: Positive | None = None
    early_stopping_threshold: Annotated[float, Field(ge=0)] = 0.0


class Recipe(Section):
    """A whole recipe, after `extends` and overrides. Plugin maps hold the options as the recipe gives them."""

    format: Annotated[int, Field(json_schema_extra={"const": 1})] = 1
    teacher: Teacher | None = None
    student: Student
    data: Data
    adapter: Options = {}
    loss: Options = {}
    token_weights: Options = {}
    train: Train = Field(default_factory=lambda: Train(num_train_epochs=1.0))
    optimizer: Options = {"adamw": {}}
    schedule: Options = {}
    stops: Options = {}
    evaluate: Evaluate = Evaluate()
    treatments: Options = {}
    probes: Options = {}
    trackers: Options = {}
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    output_dir: Text | None = None
    report_to: Text | list[Text] = "none"
    reference: Reference | None = None

    @field_validator("report_to")
    @classmethod
    def _known_trackers(cls, report_to: str | list[str]) -> str | list[str]:
        for name in [] if report_to in ("none", "all") else [report_to] if isinstance(report_to, str) else report_to:
            if name not in TRACKERS:
                known = f"{', '.join(TRACKERS)}, all or none"
                raise ValueError(f"`report_to` is {name}, but must be {known}{did_you_mean(name, TRACKERS)}")
            if find_spec(name) is None:
                raise ValueError(f"`report_to` names {name}, which is not installed: `pip install {name}`")
        return report_to

    @property
    def taught_by(self) -> Literal["base", "ema"] | None:
        """What of the student is its teacher; None where the teacher is another model, or there is none."""
        return self.teacher.itself if self.teacher else None

    @field_validator("format")
    @classmethod
    def _known_format(cls, number: int) -> int:
        if number != 1:
            raise ValueError(f"`format` is {number}, but this neoplug reads format 1")
        return number


SECTIONS: dict[str, type[Section]] = {
    "teacher": Teacher,
    "student": Student,
    "data": Data,
    "train": Train,
    "evaluate": Evaluate,
    "reference": Reference,
}
# Maps from names that a recipe is free to choose to sections.
NAMED_SECTIONS: dict[Key, type[Section]] = {("data", "sources"): Source, ("reference", "targets"): Target}


def keys_at(path: Key) -> list[str]:
    """Return the keys that a recipe may have at `path`: of the whole, a section, a source, a target, or columns."""
    if path[:1] == ("data",) and path[-1] == "columns":
        return list(get_args(Column))
    section = _section_at(path)
    return list(fields_of(section)) if section else []


def field_at(path: Key) -> FieldInfo | None:
    """Return the type and default of the key at `path`; None where there is no such key."""
    section = _section_at(path[:-1])
    return fields_of(section).get(str(path[-1])) if section else None


def fields_of(section: type[Section]) -> dict[str, FieldInfo]:
    """Return the fields of a section by their keys in a recipe."""
    return {field.alias or name: field for name, field in section.model_fields.items()}


def _section_at(path: Key) -> type[Section] | None:
    if named := NAMED_SECTIONS.get(path[:-1]):
        return named
    return Recipe if not path else SECTIONS.get(str(path[0])) if len(path) == 1 else None
