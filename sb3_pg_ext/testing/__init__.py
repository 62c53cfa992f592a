"""The contract of an algorithm, as a pytest suite to inherit from.

>>> from sb3_pg_ext.testing import AlgorithmContract
>>> class TestMine(AlgorithmContract):  # doctest: +SKIP
...     key = "my_algorithm"  # of the registry; or spec = SPEC
...     fast = {"n_steps": 16}  # constructor arguments that make it quick

:class:`AlgorithmContract` has every part; one that promises less inherits from the parts that it keeps, or turns off a
switch of :class:`~sb3_pg_ext.testing.base.Contract`. This package needs pytest.
"""

import pytest

pytest.register_assert_rewrite(
    *(
        f"{__name__}.{part}"
        for part in (
            "bad_input",
            "base",
            "callbacks",
            "construction",
            "determinism",
            "learning",
            "logging",
            "prediction",
            "saving",
            "tuning",
            "wrappers",
        )
    )
)

from sb3_pg_ext.testing.bad_input import BadInput  # noqa: E402
from sb3_pg_ext.testing.base import Contract  # noqa: E402
from sb3_pg_ext.testing.callbacks import Callbacks  # noqa: E402
from sb3_pg_ext.testing.construction import Construction  # noqa: E402
from sb3_pg_ext.testing.determinism import Determinism  # noqa: E402
from sb3_pg_ext.testing.environments import Echo, Faulty  # noqa: E402
from sb3_pg_ext.testing.learning import Learning  # noqa: E402
from sb3_pg_ext.testing.logging import Logging  # noqa: E402
from sb3_pg_ext.testing.prediction import Prediction  # noqa: E402
from sb3_pg_ext.testing.saving import Saving  # noqa: E402
from sb3_pg_ext.testing.tuning import Tuning  # noqa: E402
from sb3_pg_ext.testing.wrappers import Wrappers  # noqa: E402

__all__ = [
    "AlgorithmContract",
    "BadInput",
    "Callbacks",
    "Construction",
    "Contract",
    "Determinism",
    "Echo",
    "Faulty",
    "Learning",
    "Logging",
    "Prediction",
    "Saving",
    "Tuning",
    "Wrappers",
]


class AlgorithmContract(
    Construction, Learning, Callbacks, Saving, Prediction, Determinism, Wrappers, Logging, Tuning, BadInput
):
    """Everything that an algorithm of this package promises."""
