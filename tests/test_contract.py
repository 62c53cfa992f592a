"""The shipped contract suite on every entry of the registry: whole on our own, in part on what others wrote."""

from dataclasses import replace

import pytest

from sb3_pg_ext import registry
from sb3_pg_ext.testing import AlgorithmContract
from sb3_pg_ext.testing.tuning import configured_environments

ENTRIES = registry.available()
OWN = [key for key, spec in ENTRIES.items() if spec.cls.__module__.startswith("sb3_pg_ext.")]
UPSTREAM = [key for key in ENTRIES if key not in OWN]


def contract(key, **attributes):
    """A test class for one entry; None in place of a test turns it off."""
    return type(f"Test{registry.get(key).cls.__name__}", (AlgorithmContract,), {"key": key, **attributes})


# --- our own algorithms: everything; the numbers are budgets in which they must learn

SOLVES = {"reinforce": 6_000}

for key in OWN:
    globals()[f"Test_{key}"] = contract(key, solves=SOLVES.get(key))


@pytest.mark.parametrize("key", OWN)
def test_our_own_algorithms_have_settings(key):
    assert configured_environments(key)


# --- Stable-Baselines3 and sb3-contrib: what the registry promises of each entry

PROMISED_OF_ALL = {
    "test_supported_action_spaces_are_accepted",
    "test_other_action_spaces_are_refused_with_the_supported_ones_named",
    "test_learns_on_every_action_space",
    "test_everything_learned_is_kept",
    "test_registry_finds_the_class_of_the_file",
    "test_one_observation_gives_one_action",
    "test_a_batch_gives_a_batch",
}
TESTS = {name for name in dir(AlgorithmContract) if name.startswith("test_")}
PARTICULARS = {
    "ars": {"policy_kwargs": {}, "stops_at_step": False},
    "maskable_ppo": {"learn_kwargs": {"use_masking": False}},
    "recurrent_ppo": {
        "policy_kwargs": {"net_arch": [8], "lstm_hidden_size": 8},
        # Its constructor takes MultiBinary actions, but its update fails on them.
        "spec": replace(registry.get("recurrent_ppo"), action_spaces=("Box", "Discrete", "MultiDiscrete")),
        "test_other_action_spaces_are_refused_with_the_supported_ones_named": None,
    },
}
STOCK = {"guards": False, "native": False}

for key in UPSTREAM:
    off = dict.fromkeys(TESTS - PROMISED_OF_ALL)
    globals()[f"Test_{key}"] = contract(key, **{**off, **STOCK, **PARTICULARS.get(key, {})})


def test_the_promised_tests_exist():
    assert TESTS >= PROMISED_OF_ALL


# --- the same classes under the whole suite: it must not ask for more than what Stable-Baselines3 itself keeps

for key in ("a2c", "ppo", "trpo", "td3", "dqn"):
    globals()[f"TestWhole_{key}"] = pytest.mark.slow(contract(key, **STOCK))
