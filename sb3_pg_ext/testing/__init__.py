"""The contract of an algorithm, as a pytest suite to inherit from.

>>> from sb3_pg_ext.testing import AlgorithmContract
>>> class TestMine(AlgorithmContract):
...     key = "my_algorithm"  # of the registry; or spec = SPEC
"""

import pytest

pytest.register_assert_rewrite(
    *(
        f"{__name__}.{part}"
        for part in (
            "base",
            "bad_input",
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
