"""The order of the house: what a module may import, read from its syntax tree, and what an import loads, measured."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "sb3_pg_ext"
# A module imports from its own layer and from those before it. "" is the package itself, which everybody may ask for
# its version and which re-exports from any layer.
LAYERS = (
    "spec",
    "functional",
    "nets",
    "rollout",
    "bases",
    "envs",
    "registry",
    "algorithms",
    "diagnostics",
    "experiments",
    "testing",
    "zoo",
    "__main__",
)
# Optional or slow to load: imported inside the functions that need them.
ONLY_INSIDE_FUNCTIONS = {"envpool", "jinja2", "matplotlib", "mujoco", "optuna", "pandas", "plotly", "psycopg", "ray"}
ONLY_INSIDE_FUNCTIONS |= {"mlflow", "rl_zoo3", "seaborn", "sqlalchemy", "wandb"}
# Nothing imports these folders before it needs what they are named for.
AT_HOME = {"experiments/tuning": {"optuna"}}
# What functional/ is made of, beside the standard library.
MATHEMATICS = {"torch", "numpy", "sb3_pg_ext"}
HEAVY = ONLY_INSIDE_FUNCTIONS | {"hypothesis", "pytest", "rich", "sb3_contrib", "scipy", "tensorboard", "yaml"}

FILES = sorted(PACKAGE.rglob("*.py"))


def imported(tree, package):
    """(dotted name, stands inside a function) of everything that is imported; ``package`` resolves relative imports."""

    def visit(node, inside):
        if isinstance(node, ast.Import):
            yield from ((alias.name, inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            yield from ((f"{base}.{alias.name}", inside) for alias in node.names)
        # What is only for the type checker is not loaded, but it is a dependency: it counts as "inside a function".
        guarded = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        deeper = inside or guarded or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            yield from visit(child, deeper)

    return list(visit(tree, False))


def layer_of(dotted):
    """``sb3_pg_ext.rollout.vector_env`` -> ``rollout``; ``sb3_pg_ext.__version__`` -> the package itself, ``""``."""
    part = dotted.split(".")[1] if "." in dotted else ""
    return part if part in LAYERS else ""


def violations(path, source):
    """Sentences about what ``source``, standing in the file ``path`` of the package, may not import."""
    relative = path.relative_to(PACKAGE.parent).with_suffix("")
    home = relative.parts[1].removeprefix("__init__")
    if home and home not in LAYERS:
        return [f"{relative}: {home!r} has no place in the order of layers {LAYERS}"]
    found = []
    for name, inside in imported(ast.parse(source), ".".join(relative.parts[:-1])):
        top = name.split(".")[0]
        layer = layer_of(name) if top == "sb3_pg_ext" else ""
        if home and layer and LAYERS.index(layer) > LAYERS.index(home):
            found.append(f"{relative} imports {name}: {layer} comes after {home}")
        welcome = AT_HOME.get("/".join(relative.parts[1:-1]), set())
        if not inside and top in ONLY_INSIDE_FUNCTIONS - welcome:
            found.append(f"{relative} imports {name} at module level")
        if home == "functional" and top not in MATHEMATICS | sys.stdlib_module_names:
            found.append(f"{relative} imports {name}: functional/ is mathematics alone, {sorted(MATHEMATICS)}")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_what_its_layer_may(path):
    assert violations(path, path.read_text()) == []


@pytest.mark.parametrize(
    ("file", "source", "words"),
    [
        ("functional/x.py", "from sb3_pg_ext.rollout.episodes import collect", "rollout comes after functional"),
        ("functional/x.py", "from ..rollout import episodes", "rollout comes after functional"),
        ("functional/x.py", "def f():\n    import gymnasium", "mathematics alone"),
        ("functional/x.py", "from stable_baselines3.common import utils", "mathematics alone"),
        ("spec.py", "from sb3_pg_ext import registry", "registry comes after spec"),
        ("spec.py", "import sb3_pg_ext.registry", "registry comes after spec"),
        ("rollout/x.py", "def f():\n    from sb3_pg_ext.bases import on_policy", "bases comes after rollout"),
        ("bases/x.py", "from sb3_pg_ext.algorithms.ppo import SPEC", "algorithms comes after bases"),
        ("bases/__init__.py", "from ..envs import lqr", "envs comes after bases"),
        ("experiments/x.py", "class A:\n    import optuna", "optuna at module level"),
        ("experiments/tuning/x.py", "import plotly", "plotly at module level"),
        ("experiments/x.py", "try:\n    import matplotlib.pyplot\nexcept ImportError:\n    pass", "at module level"),
        ("__init__.py", "from rl_zoo3 import ALGOS", "at module level"),
        ("tuning/x.py", "", "no place in the order"),
    ],
)
def test_the_rule_is_enforced(file, source, words):
    [sentence] = violations(PACKAGE / file, source)
    assert words in sentence


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("functional/x.py", "import math\nimport torch as th\nfrom .returns import gae"),
        ("spec.py", "from sb3_pg_ext import __version__"),
        ("registry.py", "def f():\n    from sb3_pg_ext.bases.model_file import load_model"),
        ("algorithms/x.py", "from sb3_pg_ext.algorithms import ppo\nfrom sb3_pg_ext.bases.on_policy import OnPolicy"),
        ("experiments/x.py", "def f():\n    import optuna"),
        ("experiments/tuning/x.py", "import optuna"),
        ("experiments/x.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import pandas"),
        ("__init__.py", "from sb3_pg_ext.registry import make"),
    ],
)
def test_the_rule_allows_what_it_should(file, source):
    assert violations(PACKAGE / file, source) == []


def modules_after(code):
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport json, sys; print(json.dumps(sorted(sys.modules)))"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return {name.split(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


def test_importing_the_package_loads_nothing_heavy_beyond_stable_baselines3():
    ours = modules_after("import sb3_pg_ext")
    assert "sb3_pg_ext" in ours
    assert not (ours - modules_after("import stable_baselines3")) & HEAVY


def test_importing_every_module_loads_nothing_that_is_optional():
    names = [
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        for path in FILES
        if path.stem != "__main__" and not {"testing", "tuning"} & set(path.parts[:-1])
    ]
    assert len(names) > 20
    ours = modules_after(f"import importlib\nfor name in {names}: importlib.import_module(name)")
    assert not (ours - modules_after("import stable_baselines3, sb3_contrib")) & ONLY_INSIDE_FUNCTIONS
