from pathlib import Path

import sb3_entropy_a2c

from sb3_pg_ext.testing import AlgorithmContract


class TestEntropyA2C(AlgorithmContract):
    key = "entropy_a2c"
    configs = Path(sb3_entropy_a2c.__file__).parent  # where entropy_a2c.yml is
    guards = native = False  # promises that A2C, its parent, does not make
