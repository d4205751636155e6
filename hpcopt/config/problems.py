"""What every [problem] table has, and where the class of each kind is."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, get_args

from pydantic import (
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

from hpcopt.config.base import Count, Fraction, NonNegative, Positive, Table, Whole
from hpcopt.config.explain import explained
from hpcopt.errors import UserError
from hpcopt.ground.own_code import is_own, load_own, place_of
from hpcopt.ground.words import suggestion
from hpcopt.math.fingerprint import plain

if TYPE_CHECKING:
    from hpcopt.problems.base import Recipe

PROBLEM_TABLES = {
    "linear_regression": "hpcopt.problems.linear_regression:LinearRegression",
    "quadratic": "hpcopt.problems.quadratic:Quadratic",
    "toy_logistic": "hpcopt.problems.toy_logistic:ToyLogistic",
    "network": "hpcopt.config.problems:NetworkTable",
    "logistic": "hpcopt.config.linear:LogisticTable",
    "squared_hinge": "hpcopt.config.linear:SquaredHingeTable",
    "least_squares": "hpcopt.config.linear:LeastSquaresTable",
}
"""loaded by name when a config needs one; none of them imports torch before it is bound"""
FACTORY = "hpcopt.problems.custom:CustomTable"
Own = Annotated[str, Field(pattern=r"^[^:]+:[^:]+$")]
SPREAD = ("partition", "samples_per_worker")
"""keys that say which rows workers have"""
IN_PYTHON = "python:recipe"
"""the kind of a problem that a script made, which no config can make again"""


class ProblemTable(Table):
    """What every problem has; made by ``Class(workers, key=value, …)``, with the ``workers`` of [run]."""

    fixed = frozenset({"weights"})
    kind: str = ""
    """which problem, or "package.module:Class" or "package.module:factory" for your own"""
    weights: Literal["uniform", "rows"] = "uniform"
    """ω of the objective Σ ω_n f_n: equal for all workers, or proportional to their rows"""
    _workers: int = PrivateAttr()
    _seed: int = PrivateAttr(default=0)

    if TYPE_CHECKING:
        workers: int  # no key of the table, but an argument: this is where type checkers look for those
    else:

        @property
        def workers(self) -> int:
            """The number N of workers."""
            return self._workers

    def __init__(self, /, workers: int, *values: Any, **keys: Any) -> None:
        """Checks the keys.

        Args:
            workers: N.
            values: of the first keys that are the class's own, in their order.
            keys: all others, by name.

        Raises:
            UserError: everything that is wrong with them, one line for each.
        """
        common = {*ProblemTable.model_fields, "batch_size"}
        own, name = [key for key in type(self).model_fields if key not in common], type(self).__name__
        if isinstance(workers, bool) or not isinstance(workers, int) or workers < 0:
            raise UserError(f"{name}: workers = {workers!r}: must be a whole number")
        if len(values) > len(own):
            raise UserError(f"{name}: {len(values)} values were given; by place there are {', '.join(own)}")
        keys |= zip(own, values, strict=False)
        keys.setdefault("kind", _kind(type(self)))
        try:
            super().__init__(**{key: _plain(value) for key, value in keys.items()})
        except ValidationError as error:
            raise UserError("\n".join(explained(type(self), error))) from None
        self._workers = workers

    def seeded(self, seed: int) -> Self:
        """The same table, which knows the run's seed."""
        self._seed = seed
        return self

    def dump(self) -> dict[str, Any]:
        """The keys with plain values, without those that are not set."""
        return self.model_dump(exclude_none=True)

    def made_of(self) -> dict[str, str]:
        """The keys that a run cannot change when it goes on, as texts; see `hpcopt.problems.base.Problem`."""
        return {f"[problem] {key}": plain(getattr(self, key, None)) for key in sorted(self.fixed)}

    def recipe(self) -> Recipe:
        """What the table describes; raises `UserError` where that cannot be made."""
        raise NotImplementedError


class PartitionTable(ProblemTable):
    """How rows of a data set are spread over the workers; mixed into every problem that has one."""

    fixed = ProblemTable.fixed | {"partition", "alpha", "classes_per_worker", "samples_per_worker"}
    partition: Literal["iid", "dirichlet", "classes", "unequal", "blocks"] = "iid"
    """iid: shuffled evenly; dirichlet: label proportions from Dir(alpha); classes: each worker sees only
    classes_per_worker classes; unequal: iid with sizes from Dir(alpha); blocks: contiguous rows, evenly"""
    alpha: Positive = 0.5
    """concentration of the Dirichlet distribution: small is heterogeneous"""
    classes_per_worker: Count = 2
    """for partition = "classes" """
    samples_per_worker: Count | None = None
    """exactly so many training rows per worker (all rows are shared out if not given)"""
    rows: str | None = None
    """in place of a partition: an HDF5 file with the training rows of each worker, /train/0, /train/1, …, and
    perhaps its test rows, /test/0, … (even parts of them if not), as row numbers from 0"""
    batch_size: Count | Literal["full"] = 32
    """rows per mini-batch and worker"""

    @model_validator(mode="after")
    def _rows_or_a_partition(self) -> PartitionTable:
        given = [key for key in SPREAD if getattr(self, key) != type(self).model_fields[key].default]
        if self.rows is not None and given:
            raise ValueError(f'rows = "{self.rows}": says which rows workers have, and so does {given[0]}')
        return self


class NetworkTable(PartitionTable):
    """A neural network: built-in ones on images with cross-entropy, or of your own."""

    fixed = PartitionTable.fixed | {
        *("model", "model_options", "loss", "loss_options", "hidden", "private", "regularisation"),
        *("logit_adjustment", "new_workers"),
    }
    dataset: str = "digits"
    """"fashion-mnist", "digits", or the path of a file made by `hpcopt data import`"""
    model: Literal["mlp", "cnn", "alexnet", "resnet18"] | Own = "mlp"
    """the network, or a class of your own, "package.module:Class", whose parameters begin as torch draws them
    from run.seed; see hpcopt.Network for what rows it gets"""
    model_options: dict[str, Any] = Field(default={})
    """keyword arguments of your own model, { width = 8 }"""
    loss: Literal["cross_entropy"] | Own = "cross_entropy"
    """or a loss of your own: a function (output, target), "package.module:function", or a class of such"""
    loss_options: dict[str, Any] = Field(default={})
    """keyword arguments of your own loss"""
    hidden: list[Count] = Field(default=[256, 128])
    """mlp: widths of the hidden layers; the last layer is the head, and without others, [], it is logistic
    regression"""
    dropout: Fraction = 0.0
    """cnn, alexnet: dropout before the head"""
    private: list[str] = Field(default=["head.*"])
    """name patterns of the parameters that methods with private parts keep on the worker"""
    regularisation: NonNegative = 0.0
    """λ of λ/2 ‖x‖² in every worker's loss"""
    logit_adjustment: Annotated[float, Field(ge=0, le=100)] = 0.0
    """τ of τ log π_n, added to worker n's logits in training and where it tests a model of its own; π_n: how
    often its rows have each class. With 1, what is shared need not learn who has what (arXiv 2007.07314)"""
    new_workers: Whole = 0
    """workers beside run.workers that get rows, which the others then do not have, but take no part in
    training: at each evaluation each of them fits the private parameters to its own rows, on the
    representation of the run's one model (of the mean of the workers' own models), which stays as it is;
    measured as new_worker_accuracy, …"""
    new_worker_steps: Count = 50
    """SGD steps with which a new worker does so, from the values that all workers began with"""
    new_worker_lr: Positive = 0.1
    """learning rate of these steps, whatever the method"""

    @field_validator("model", "loss", mode="wrap")
    @classmethod
    def _built_in_or_own(cls, value: Any, check: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        try:
            return check(value)
        except ValidationError:
            key = str(info.field_name)
            built_in = get_args(get_args(cls.model_fields[key].annotation)[0])
            what = "Class" if key == "model" else "function"
            raise ValueError(
                f'must be {", ".join(map(repr, built_in))}, or your own "package.module:{what}"'
                + (suggestion(value, built_in) if isinstance(value, str) else "")
            ) from None

    @model_validator(mode="after")
    def _keys_fit_the_model(self) -> NetworkTable:
        for key in ("model", "loss"):
            own, options = is_own(getattr(self, key)), getattr(self, f"{key}_options")
            if options and not own:
                raise ValueError(f"{key}_options = {options!r}: is for a {key} of your own")
        for key in ("hidden", "dropout"):
            value = getattr(self, key)
            if is_own(self.model) and value != type(self).model_fields[key].default:
                raise ValueError(f"{key} = {value!r}: is for a built-in model; yours has model_options")
        return self

    def recipe(self) -> Recipe:
        """The network; raises `UserError` where there is no such data set, or the model cannot take it."""
        return load_place("hpcopt.problems.network:BuiltInNetwork")(self)


def problem_class(kind: Any) -> type[ProblemTable]:
    """The class of a kind's tables: built in, or the user's own, which is imported.

    Raises:
        UserError: there is no such kind.
    """
    if not isinstance(kind, str) or not (kind in PROBLEM_TABLES or is_own(kind)):
        hint = suggestion(kind, PROBLEM_TABLES) if isinstance(kind, str) else ""
        raise UserError(f"kind = {kind!r}: no such problem{hint}; allowed: {kinds()}")
    if kind in PROBLEM_TABLES:
        return load_place(PROBLEM_TABLES[kind])
    own = None if kind == IN_PYTHON else _own(kind)
    return own if isinstance(own, type) and issubclass(own, ProblemTable) else load_place(FACTORY)


def kinds() -> str:
    """What ``kind`` may be."""
    return (
        ", ".join(f'"{kind}"' for kind in PROBLEM_TABLES)
        + ', or your own "package.module:Class" or "package.module:factory"'
    )


def _own(kind: str) -> Any:
    try:
        return load_own("kind", kind, "factory")
    except ModuleNotFoundError:  # what the user's module imports: torch, say, which jobs have
        return None


def load_place(place: str) -> Any:
    """What "module:name" stands for."""
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


def _kind(table: type[ProblemTable]) -> str:
    place = place_of(table)
    return next((kind for kind, known in PROBLEM_TABLES.items() if known == place), place)


def _plain(value: Any) -> Any:
    """NumPy's numbers and arrays, and tuples, as TOML has them."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return list(value) if isinstance(value, tuple) else value
