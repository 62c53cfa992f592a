"""An update of many gradient steps takes place as a whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from sb3_pg_ext.rollout.guards import NonFiniteError

Arguments = ParamSpec("Arguments")
Model = TypeVar("Model", bound=Any)
#: How torch begins to refuse a distribution whose parameters are NaN or a standard deviation of 0.
_REFUSAL = "Expected parameter"


def all_or_nothing(
    update: Callable[Concatenate[Model, Arguments], None],
) -> Callable[Concatenate[Model, Arguments], None]:
    """Make a method undo what it has done to ``policy`` and its optimizer, if it raises.

    :raises NonFiniteError: from the method, if torch refuses the policy's distribution
    """

    @wraps(update)
    def whole(model: Model, *args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        learned = [model.policy, model.policy.optimizer]
        before = [deepcopy(part.state_dict()) for part in learned]
        try:
            update(model, *args, **kwargs)
        except Exception as error:
            for part, state in zip(learned, before, strict=True):
                part.load_state_dict(state)
            if isinstance(error, ValueError) and str(error).startswith(_REFUSAL):
                raise NonFiniteError(_explanation(error)) from error
            raise

    return whole


def _explanation(error: ValueError) -> str:
    return (
        "A gradient step left no usable policy: torch refuses its action distribution "
        f"({str(error).splitlines()[0][:200]}). The parameters are those before this update. Usual causes: "
        "learning_rate too large, or rewards too large for float32."
    )
