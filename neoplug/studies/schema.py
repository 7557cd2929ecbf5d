"""The schema of study files: keys, types and ranges. What the keys mean together is checked by `checks` and `arms`."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, Field, field_validator, model_validator
from pydantic.fields import FieldInfo

from neoplug.errors import Path as Key
from neoplug.recipe.section import Positive, Section, Text

Seed = Annotated[int, Field(ge=0, lt=2**32)]
Seeds = Annotated[list[Seed], Field(min_length=1)]
Level = Annotated[Text, BeforeValidator(lambda name: str(name) if type(name) is int else name)]  # `r: {8: ...}`
Levels = Annotated[list[Level], Field(min_length=1)]
Factor = Annotated[float, Field(gt=0)]
Value = dict[str, Any] | None  # of a level: a section of a recipe, or a map of dotted keys


def _empty(value: Any) -> Any:
    """Return the options of an executor that is written without any: `print:` is `print: {}`."""
    return {name: {} if options is None else options for name, options in value.items()} if _is_map(value) else value


def _is_map(value: Any) -> bool:
    return isinstance(value, Mapping)


class Searched(Section):
    """A searched key. Every arm has the same values, times its factors; several keys have the product of their grids.

    values  the grid
    extend  how many times values may be added beyond the edges at which the best value of some arm lies
    seeds   the tuning seeds, none of which is one of the study's `seeds`; the same for all keys, so one may state them
    scale   axis -> level -> factor of the values for arms of that level
    """

    values: Annotated[list[int | float], Field(min_length=1)]
    extend: Annotated[int, Field(ge=0, le=10)] = 0
    seeds: Seeds | None = None
    scale: dict[Text, dict[Text, Factor]] = Field({})

    @field_validator("values")
    @classmethod
    def _distinct(cls, values: list[int | float]) -> list[int | float]:
        if twice := next((value for value in values if values.count(value) > 1), None):
            raise ValueError(f"`values` has {twice:g} twice")
        return sorted(values)

    @model_validator(mode="after")
    def _can_be_extended(self) -> Self:
        if self.extend and (len(self.values) < 2 or self.values[0] <= 0):
            raise ValueError("`extend` continues the ratio of the two values at an edge: it needs two, all above 0")
        return self


class Metric(Section):
    """A metric. `margin`: differences below it count as none; None: no test of equivalence."""

    margin: Annotated[float, Field(gt=0)] | None = None


class Contrast(Section):
    """One family of planned comparisons: arms with the control that has the same levels of all other axes.

    name     None: its control, as loss=ce
    control  axis -> level of the controls
    arms     axis -> level or levels of the arms that are compared; none: all
    """

    name: Text | None = None
    control: Annotated[dict[Text, Level], Field(min_length=1)]
    arms: dict[Text, Level | Levels] = Field({})
    metrics: Annotated[list[Text], Field(min_length=1)]


class Local(Section):
    """Processes on this machine. `workers`: how many at most; None: one a device."""

    workers: Positive | None = None


class Ray(Section):
    """Tasks of a Ray cluster. `address` None: one that is started here; `cpus` and `gpus` are those of one run."""

    address: Text | None = None
    cpus: Annotated[float, Field(gt=0)] = 1.0
    gpus: Annotated[float, Field(ge=0)] = 0.0


class Print(Section):
    """Nothing is run: one command a run is printed."""


class Executor(Section):
    """Where the runs are executed: one of these, with its options. `slurm`: parameters of submitit."""

    local: Local | None = None
    slurm: dict[Text, str | int | float | bool] | None = None
    ray: Ray | None = None
    print: Print | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if len(self.model_fields_set) != 1:
            raise ValueError(f"`executor` is one of {', '.join(Executor.model_fields)}")
        return self

    @property
    def kind(self) -> str:
        """The name of the one that is set."""
        return next(iter(self.model_fields_set))


class StudyFile(Section):
    """A whole study file.

    base       a recipe, shipped or a file, that all arms change; or {extends: RECIPE} with changes for all arms
    axes       axis -> level -> value: of the section of a recipe that has the axis's name, else a map of dotted keys
    zip        lists of axes that vary together, the first level of each with the first, and so on
    exclude    arms that are left out: axis -> level or levels
    arms       further arms: axis -> level, or {NEW_LEVEL: value}
    seeds      of the test runs
    search     searched key -> its grid; none: every run has the values of its recipe
    metrics    those that are reported; the first one chooses
    contrasts  the planned comparisons
    executor   where the runs are executed; none: on this machine
    match      `parameters`: each adapter has the size at which it trains as many parameters as that of the first arm
    keep       of which runs the folder stays: of each arm's best, all, or none
    """

    name: Text | None = None
    base: Text | dict[str, Any]
    axes: Annotated[dict[Text, Annotated[dict[Text, Value], Field(min_length=1)]], Field(min_length=1)]
    zip: list[list[Text]] = Field([])
    exclude: list[Annotated[dict[Text, Level | Levels], Field(min_length=1)]] = Field([])
    arms: list[dict[Text, Level | dict[Text, Value]]] = Field([])
    seeds: Seeds
    search: dict[Text, Searched] = Field({})
    metrics: Annotated[dict[Text, Metric], Field(min_length=1)]
    contrasts: list[Contrast] = Field([])
    executor: Annotated[Executor, BeforeValidator(_empty)] = Field(default_factory=lambda: Executor(local=Local()))
    match: Literal["parameters"] | None = None
    keep: Literal["best", "all", "none"] = "best"


def keys_at(path: Key) -> list[str]:
    """Return the keys that a study file may have at `path`; none where they are free."""
    return [name for model in _models_at(path) for name in model.model_fields]


def field_at(path: Key) -> FieldInfo | None:
    """Return the type and default of the key at `path`; None where there is no such key, or it is free."""
    return next((field for model in _models_at(path[:-1]) if (field := model.model_fields.get(str(path[-1])))), None)


def _models_at(path: Key) -> list[type[BaseModel]]:
    """Return the models that the value at `path` may be."""
    hints: list[Any] = [StudyFile]
    for key in path:
        hints = [inner for hint in hints for inner in _inside(hint, key)]
    return [hint for hint in hints if isinstance(hint, type) and issubclass(hint, BaseModel)]


def _inside(hint: Any, key: str | int) -> list[Any]:
    """Return the types, without unions, that the value of a key, or of an item, of this type may have."""
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        field = hint.model_fields.get(str(key))
        return _members(field.annotation) if field else []
    origin, inner = get_origin(hint), get_args(hint)
    return _members(inner[-1]) if origin in (dict, list) else []


def _members(hint: Any) -> list[Any]:
    """Return the members of a union, without annotations."""
    if get_origin(hint) is Annotated:
        return _members(get_args(hint)[0])
    if get_origin(hint) in (dict, list) or not get_args(hint):
        return [hint]
    return [member for part in get_args(hint) for member in _members(part)]
