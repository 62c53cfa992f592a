"""The worked example in docs/plugin_example: built, installed into an empty folder, discovered and used from there."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[1] / "docs" / "plugin_example"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder that holds nothing but the installed example."""
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    # With the build backend at hand nothing has to be downloaded.
    offline = ["--no-build-isolation"] if importlib.util.find_spec("hatchling") else []
    done = subprocess.run([*command, *offline, "--target", target, EXAMPLE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


def run(site, code):
    """What ``code`` prints in a fresh interpreter that sees the installed example, not the copy beside this file."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        cwd=site,
        env={**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_the_module_the_settings_and_the_entry_point(site):
    [info] = site.glob("sb3_entropy_a2c-*.dist-info")
    assert "entropy_a2c = sb3_entropy_a2c:SPEC" in (info / "entry_points.txt").read_text()
    assert {p.name for p in (site / "sb3_entropy_a2c").iterdir()} >= {"__init__.py", "entropy_a2c.yml"}


def test_without_it_the_registry_does_not_know_the_algorithm():
    from sb3_pg_ext import registry

    with pytest.raises(registry.UnknownAlgorithmError):
        registry.get("entropy_a2c")


def test_it_is_discovered_and_loaded_only_when_asked_for(site):
    printed = run(
        site,
        """
        import sys
        from sb3_pg_ext import registry
        assert "entropy_a2c" in registry.keys()
        assert "sb3_entropy_a2c" not in sys.modules
        spec = registry.get("entropy_a2c")
        assert spec is registry.available(family="on_policy", action_space="Discrete")["entropy_a2c"]
        assert registry.key_of(spec.cls) == "entropy_a2c"
        assert spec.defaults["target_entropy"] == 0.5 and spec.defaults["learning_rate"] == 7e-4
        print(spec.cls.__module__, sys.modules["sb3_entropy_a2c"].__file__)
        """,
    )
    assert printed.split() == ["sb3_entropy_a2c", str(site / "sb3_entropy_a2c" / "__init__.py")]


def test_it_trains_saves_and_does_what_its_equation_says(site):
    """The coefficient rises while the entropy is below the target; with a target below any entropy it is A2C."""
    printed = run(
        site,
        """
        import json
        import torch as th
        from sb3_pg_ext.registry import get, make

        def trained(key, **kwargs):
            return make(key, "CartPole-v1", n_envs=4, seed=0, device="cpu", **kwargs).learn(400)

        def equal(a, b):
            return all(th.equal(p, q) for p, q in zip(a.policy.parameters(), b.policy.parameters(), strict=True))

        eager = trained("entropy_a2c", target_entropy=2.0)
        eager.save("model")
        again = get("entropy_a2c").cls.load("model", device="cpu")
        idle, plain = trained("entropy_a2c", target_entropy=-1.0), trained("a2c")
        print(json.dumps({
            "rise": eager.ent_coef,
            "kept": again.ent_coef == eager.ent_coef and again.target_entropy == 2.0 and equal(again, eager),
            "idle": idle.ent_coef,
            "idle is a2c": equal(idle, plain),
            "eager is a2c": equal(eager, plain),
        }))
        """,
    )
    seen = json.loads(printed)
    # 20 updates, each eta (H* - H) with eta = 1e-3, H* = 2 and 0 < H <= log 2.
    assert 20 * 1e-3 * (2.0 - 0.6932) <= seen.pop("rise") < 20 * 1e-3 * 2.0
    assert seen == {"kept": True, "idle": 0.0, "idle is a2c": True, "eager is a2c": False}


def test_its_settings_build_the_model(site):
    run(
        site,
        """
        import importlib.resources, yaml
        from sb3_pg_ext.registry import get, make
        from sb3_pg_ext.spec import nest
        text = importlib.resources.files("sb3_entropy_a2c").joinpath("entropy_a2c.yml").read_text()
        for env, settings in yaml.safe_load(text).items():
            arguments = {k: v for k, v in settings.items() if k not in ("n_timesteps", "n_envs", "policy")}
            defaults = get("entropy_a2c").defaults
            assert all(defaults[name] != value for name, value in arguments.items())
            make("entropy_a2c", env, settings["policy"], n_envs=settings["n_envs"], **nest(arguments))
        """,
    )


def test_a_bad_argument_is_refused_by_name(site):
    run(
        site,
        """
        from sb3_pg_ext.registry import make
        try:
            make("entropy_a2c", "CartPole-v1", dual_rate=-1.0)
        except ValueError as error:
            assert "dual_rate=-1.0" in str(error)
        else:
            raise SystemExit("not refused")
        """,
    )


def test_the_code_in_its_readme_runs(site):
    code, test = re.findall(r"```python\n(.*?)```", (EXAMPLE / "README.md").read_text(), flags=re.DOTALL)
    assert test in (EXAMPLE / "tests" / "test_entropy_a2c.py").read_text()
    printed = run(site, code)
    assert "'entropy_a2c'" in printed
    assert "entropy coefficient: 0.0" in printed


def test_it_passes_the_contract_suite(site):
    """As its author runs it: on the installed package, with no setting of pytest of this one."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error"]
    done = subprocess.run(
        [*command, "-c", os.devnull, "--rootdir", site, EXAMPLE / "tests"],
        capture_output=True,
        text=True,
        cwd=site,
        env={**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout
    passed = int(re.search(r"(\d+) passed", done.stdout)[1])
    assert passed > 150
