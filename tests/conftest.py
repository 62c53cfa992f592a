"""What all tests share: logs of Stable-Baselines3 go where pytest cleans up, not to the folder for temporary files."""

import os

import pytest


@pytest.fixture(scope="session", autouse=True)
def log_folder(tmp_path_factory):
    """Stable-Baselines3 makes a folder for each logger unless this variable names one."""
    before = os.environ.get("SB3_LOGDIR")
    os.environ["SB3_LOGDIR"] = str(tmp_path_factory.mktemp("logs"))
    yield
    if before is None:
        del os.environ["SB3_LOGDIR"]
    else:
        os.environ["SB3_LOGDIR"] = before
