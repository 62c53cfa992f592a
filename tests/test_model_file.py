"""Model files: stock files load with equal parameters, hostile ones run nothing, no crash leaves a torn one."""

import base64
import contextlib
import copy
import copyreg
import errno
import functools
import io
import json
import operator
import os
import pickle
import stat
import subprocess
import sys
import tracemalloc
import zipfile
from collections import OrderedDict, deque
from pathlib import Path

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
import sb3_contrib as contrib
import stable_baselines3 as sb3
import torch
from gymnasium import spaces
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stable_baselines3.common import save_util
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise, VectorizedActionNoise
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from stable_baselines3.common.torch_layers import NatureCNN
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from stable_baselines3.her import GoalSelectionStrategy, HerReplayBuffer

from sb3_pg_ext import registry
from sb3_pg_ext.bases import atomic_file, model_archive, model_file, safe_names
from sb3_pg_ext.bases.model_file import (
    ModelFileError,
    UnsafeModelError,
    atomic_write,
    load_model,
    load_vec_normalize,
    read_fields,
    register_safe_class,
    save_model,
)
from sb3_pg_ext.bases.safe_pickle import SafeReader
from sb3_pg_ext.spec import AlgorithmSpec

BOX = spaces.Box(-1.0, 1.0, (3,))
ACTION, DISCRETE = spaces.Box(-1.0, 1.0, (2,)), spaces.Discrete(3)
NET = {"net_arch": [4]}
REPLAY = {"learning_starts": 3, "buffer_size": 20, "batch_size": 4, "policy_kwargs": NET}
ROLLOUT = {"n_steps": 4, "batch_size": 4, "policy_kwargs": NET}
STOCK = {  # key: class, policy, action space, arguments
    "a2c": (sb3.A2C, "MlpPolicy", DISCRETE, {"policy_kwargs": NET}),
    "ppo": (sb3.PPO, "MlpPolicy", ACTION, {**ROLLOUT, "n_epochs": 1}),
    "dqn": (sb3.DQN, "MlpPolicy", DISCRETE, REPLAY),
    "ddpg": (sb3.DDPG, "MlpPolicy", ACTION, {**REPLAY, "action_noise": NormalActionNoise(np.zeros(2), np.ones(2))}),
    "td3": (sb3.TD3, "MlpPolicy", ACTION, REPLAY),
    "sac": (sb3.SAC, "MlpPolicy", ACTION, REPLAY),
    "trpo": (contrib.TRPO, "MlpPolicy", ACTION, ROLLOUT),
    "ars": (contrib.ARS, "LinearPolicy", ACTION, {"n_delta": 1}),
    "tqc": (contrib.TQC, "MlpPolicy", ACTION, REPLAY),
    "qrdqn": (contrib.QRDQN, "MlpPolicy", DISCRETE, REPLAY),
    "crossq": (contrib.CrossQ, "MlpPolicy", ACTION, REPLAY),
    "maskable_ppo": (contrib.MaskablePPO, "MlpPolicy", DISCRETE, {**ROLLOUT, "n_epochs": 1}),
    "recurrent_ppo": (
        contrib.RecurrentPPO,
        "MlpLstmPolicy",
        ACTION,
        {**ROLLOUT, "n_epochs": 1, "policy_kwargs": {"net_arch": [4], "lstm_hidden_size": 4}},
    ),
}


class Toy(gym.Env):
    """Four random steps, reward one."""

    def __init__(self, action_space: spaces.Space, observation_space: spaces.Space = BOX):
        self.action_space, self.observation_space, self.t = action_space, observation_space, 0

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self.t += 1
        return self.observation_space.sample(), 1.0, self.t == 4, False, {}

    def action_masks(self):
        return np.ones(self.action_space.n, dtype=bool)


class OwnSchedule:
    """An importable schedule that the tables do not know."""

    def __init__(self, slope: float):
        self.slope = slope

    def __call__(self, progress: float) -> float:
        return self.slope * progress


def own_schedule(progress: float) -> float:
    return 1e-3 * progress


class OwnPolicy(sb3.ppo.MlpPolicy):
    """An importable policy that the tables do not know."""


def identify(path) -> str:
    return model_file.identify(path, list(STOCK), lambda: {key: registry.get(key) for key in STOCK})


@functools.cache
def trained(key: str):
    cls, policy, action_space, kwargs = STOCK[key]
    return cls(policy, Toy(action_space), seed=0, **copy.deepcopy(kwargs)).learn(8)


def tiny_ppo(**kwargs):
    return sb3.PPO("MlpPolicy", Toy(ACTION), n_steps=4, batch_size=4, policy_kwargs=dict(NET), seed=0, **kwargs)


def tensors(model) -> dict[str, torch.Tensor]:
    flat = {}

    def walk(prefix, value):
        if isinstance(value, torch.Tensor):
            flat[prefix] = value
        elif isinstance(value, dict):
            for name, item in value.items():
                walk(f"{prefix}/{name}", item)

    walk("", model.get_parameters())
    return flat


def equal(a, b) -> bool:
    """Same type and same content, into arrays, containers and plain objects."""
    if type(a) is not type(b):
        return False
    if isinstance(a, (np.ndarray, torch.Tensor)):
        return a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all())
    if isinstance(a, (np.random.Generator, np.random.RandomState)):
        return a.random(3).tolist() == b.random(3).tolist()
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple, deque)):
        return len(a) == len(b) and getattr(a, "maxlen", 0) == getattr(b, "maxlen", 0) and all(map(equal, a, b))
    if hasattr(a, "__dict__") and not callable(getattr(a, "mro", None)) and not isinstance(a, GoalSelectionStrategy):
        return equal(vars(a), vars(b))
    return a == b


def safely(value, protocol=None):
    return SafeReader().read(cloudpickle.dumps(value, protocol=protocol))


@pytest.fixture(scope="session")
def ppo_bytes() -> bytes:
    buffer = io.BytesIO()
    trained("ppo").save(buffer)
    return buffer.getvalue()


def with_members(content: bytes, **changes: bytes | None) -> bytes:
    """The zip ``content`` with members replaced, added or (None) left out."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w") as new:
        members = {name: old.read(name) for name in old.namelist()} | changes
        for name, data in members.items():
            if data is not None:
                new.writestr(name, data)
    return out.getvalue()


def with_field(content: bytes, name: str, pickled: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        fields = json.loads(archive.read("data"))
    fields[name] = {":type:": "whatever", ":serialized:": base64.b64encode(pickled).decode()}
    return with_members(content, data=json.dumps(fields).encode())


# --- what must load


@pytest.mark.parametrize("key", STOCK)
def test_stock_model_loads_with_equal_parameters_and_fields_and_unpickles_nothing(key, tmp_path, monkeypatch):
    model, path = trained(key), tmp_path / "model.zip"
    model.save(path)
    upstream = save_util.load_from_zip_file(path)[0]
    fields = read_fields(path)
    assert fields.keys() == upstream.keys()
    assert [name for name in fields if not equal(fields[name], upstream[name])] == []

    monkeypatch.setattr(save_util.cloudpickle, "loads", None)
    loaded = load_model(type(model), path, env=Toy(STOCK[key][2]))
    assert type(loaded) is type(model)
    before, after = tensors(model), tensors(loaded)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    observation = BOX.sample()
    assert np.array_equal(*(m.predict(observation, deterministic=True)[0] for m in (model, loaded)))
    loaded.learn(4)


DICT = spaces.Dict({"a": BOX, "b": spaces.Discrete(2), "c": spaces.Box(0, 255, (3, 36, 36), np.uint8)})
CONFIGURATIONS = {
    "ppo dict": (sb3.PPO, "MultiInputPolicy", DICT, ACTION, {"n_steps": 4, "batch_size": 4}),
    "ppo linear": (
        sb3.PPO,
        "MlpPolicy",
        BOX,
        spaces.MultiDiscrete([2, 3]),
        {"learning_rate": LinearSchedule(1e-3, 0, 1)},
    ),
    "ppo multi-binary": (sb3.PPO, "MlpPolicy", spaces.MultiBinary(4), spaces.MultiBinary(2), {"clip_range_vf": 0.1}),
    "ppo path": (sb3.PPO, "MlpPolicy", BOX, ACTION, {"tensorboard_log": Path("somewhere")}),
    "a2c sde": (sb3.A2C, "MlpPolicy", BOX, ACTION, {"use_sde": True, "policy_kwargs": {"activation_fn": torch.nn.ELU}}),
    "a2c image": (sb3.A2C, "CnnPolicy", DICT["c"], ACTION, {"policy_kwargs": {"features_extractor_class": NatureCNN}}),
    "a2c old optimizer": (sb3.A2C, "MlpPolicy", BOX, ACTION, {"policy_kwargs": {"optimizer_class": RMSpropTFLike}}),
    "sac noise": (
        sb3.SAC,
        "MlpPolicy",
        BOX,
        ACTION,
        {"action_noise": OrnsteinUhlenbeckActionNoise(np.zeros(2), np.ones(2))},
    ),
    "td3 dict": (sb3.TD3, "MultiInputPolicy", DICT, ACTION, {"train_freq": (1, "episode"), "buffer_size": 10}),
    "dqn n-step": (sb3.DQN, "MlpPolicy", spaces.Discrete(5), DISCRETE, {"n_steps": 3, "buffer_size": 10}),
    "tqc image": (contrib.TQC, "CnnPolicy", DICT["c"], ACTION, {"buffer_size": 10}),
    "maskable dict": (contrib.MaskablePPO, "MultiInputPolicy", DICT, DISCRETE, {"n_steps": 4, "batch_size": 4}),
}


@pytest.mark.filterwarnings("ignore:.n_steps=3. is ignored")  # upstream, whenever it loads such a model
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_other_policies_spaces_and_options_load(name, tmp_path):
    cls, policy, observation_space, action_space, kwargs = CONFIGURATIONS[name]
    small = {"net_arch": [4]} | ({"features_extractor_kwargs": {"features_dim": 4}} if "Cnn" in policy else {})
    kwargs = {**kwargs, "policy_kwargs": small | kwargs.get("policy_kwargs", {})}
    model = cls(policy, Toy(action_space, observation_space), **kwargs)
    model.save(tmp_path / "model")
    fields, upstream = read_fields(tmp_path / "model"), save_util.load_from_zip_file(tmp_path / "model")[0]
    assert [name for name in upstream if not equal(fields[name], upstream[name])] == []
    loaded = load_model(cls, tmp_path / "model")
    assert all(map(torch.equal, tensors(model).values(), tensors(loaded).values()))


def test_hindsight_replay_loads(tmp_path):
    goal = spaces.Dict({name: BOX for name in ("observation", "achieved_goal", "desired_goal")})
    kwargs = {"goal_selection_strategy": GoalSelectionStrategy.FINAL, "n_sampled_goal": 2}
    env = Toy(ACTION, goal)
    env.compute_reward = lambda achieved, desired, info: np.zeros(len(achieved))
    arguments = {"replay_buffer_class": HerReplayBuffer, "replay_buffer_kwargs": kwargs, "buffer_size": 20}
    sb3.SAC("MultiInputPolicy", env, policy_kwargs=dict(NET), **arguments).save(tmp_path / "her.zip")
    loaded = load_model(sb3.SAC, tmp_path / "her.zip", env=env)
    assert loaded.replay_buffer_class is HerReplayBuffer
    assert loaded.replay_buffer_kwargs["goal_selection_strategy"] is GoalSelectionStrategy.FINAL


SPACES = [
    BOX,
    spaces.Box(np.array([-np.inf, 0.0]), np.array([1.0, np.inf]), dtype=np.float64),
    spaces.Box(0, 255, (2, 2, 3), np.uint8),
    spaces.Discrete(4, start=-1),
    spaces.MultiDiscrete([2, 3], start=[1, 0]),
    spaces.MultiBinary((2, 2)),
    spaces.Text(5, charset="abc"),
    spaces.Sequence(spaces.Discrete(2)),
    spaces.Graph(BOX, spaces.Discrete(2)),
    spaces.Dict({"x": BOX, "y": spaces.Tuple((DISCRETE, spaces.MultiBinary(2)))}),
    spaces.OneOf((DISCRETE, BOX)),
]


@pytest.mark.parametrize("space", SPACES, ids=lambda space: type(space).__name__)
def test_every_kind_of_space_is_read_with_its_random_state(space):
    space.seed(7)
    read = safely(space)
    assert read == space
    assert repr(read) == repr(space)
    assert repr([read.sample() for _ in range(3)]) == repr([space.sample() for _ in range(3)])


VALUES = {
    "arrays": [
        np.arange(6.0).reshape(2, 3),
        np.zeros((0, 4)),
        np.arange(6).reshape(2, 3).T,
        np.float16([1]),
        np.array(3),
    ],
    "big endian": np.arange(3, dtype=">i4"),
    "text": np.array(["ab", "c"]),
    "bool and complex": [np.array([True, False]), np.array([1 + 2j])],
    "strided": np.arange(10)[::3],
    "scalars": [np.float32(1.5), np.int64(-3), np.bool_(True), np.str_("ab"), np.float64("nan").dtype],
    "random": [np.random.default_rng(1), np.random.RandomState(2), np.random.Generator(np.random.Philox(3))],
    "more random": [np.random.Generator(g(4)) for g in (np.random.MT19937, np.random.SFC64, np.random.PCG64DXSM)],
    "deque": deque([{"r": 1.0, "l": 3, "t": 0.1}], maxlen=100),
    "containers": {
        "a": [1, (2, 3)],
        "b": {4},
        "c": frozenset({5}),
        "d": OrderedDict(x=1),
        "e": b"6",
    },
    "schedules": [FloatSchedule(LinearSchedule(1.0, 0.1, 0.5)), ConstantSchedule(0.1)],
    "train_freq": TrainFreq(4, TrainFrequencyUnit.EPISODE),
    "noise": VectorizedActionNoise(NormalActionNoise(np.zeros(2), np.ones(2)), 2),
    "tensors": [torch.arange(6.0).reshape(2, 3).T, torch.zeros(0), torch.tensor(2), torch.nn.Parameter(torch.ones(2))],
    "torch": [torch.device("cpu"), torch.Size([2, 3])],
    "path": Path("a") / "b",
}


@pytest.mark.parametrize("protocol", [4, 5])
@pytest.mark.parametrize("name", VALUES)
def test_values_of_models_are_read(name, protocol):
    value = VALUES[name]
    assert equal(safely(value, protocol), pickle.loads(cloudpickle.dumps(value, protocol=protocol)))


def test_schedules_of_the_zoo_become_those_of_stable_baselines3_without_an_import_of_it(monkeypatch):
    class SimpleLinearSchedule:
        __module__, __qualname__ = "rl_zoo3.utils", "SimpleLinearSchedule"

        def __init__(self, initial_value):
            self.initial_value = initial_value

        def __call__(self, progress_remaining):
            return self.initial_value * progress_remaining

    with monkeypatch.context() as patch:
        for name in ("rl_zoo3", "rl_zoo3.utils"):
            patch.setitem(sys.modules, name, type(sys)(name))
        sys.modules["rl_zoo3.utils"].SimpleLinearSchedule = SimpleLinearSchedule
        data = pickle.dumps(FloatSchedule(SimpleLinearSchedule(0.25)))
    monkeypatch.setitem(sys.modules, "rl_zoo3", None)  # an import of it would fail
    read = SafeReader().read(data)
    assert type(read.value_schedule) is LinearSchedule
    assert [read(left) for left in (1.0, 0.5, 0.0)] == [0.25, 0.125, 0.0]
    own = SafeReader(allow=[SimpleLinearSchedule]).read(data)
    assert type(own.value_schedule) is SimpleLinearSchedule, "who allows the class gets it"


@pytest.mark.parametrize("core", [b"core", b"_core"])
def test_names_of_numpy_1_are_read(core):
    dtype = b"cnumpy\ndtype\n(U\x02i4\x89\x88tR(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    seven = SafeReader().read(
        b"\x80\x04cnumpy." + core + b".multiarray\nscalar\n" + dtype + b"C\x04\x07\x00\x00\x00\x86R."
    )
    assert type(seven) is np.int32
    assert seven == 7


@pytest.mark.parametrize("pair", sorted(safe_names.NAMED | safe_names.MADE), ids=".".join)
def test_every_name_of_the_tables_is_what_pickle_writes(pair):
    module, name = pair
    cls = getattr(__import__(module, fromlist=[name]), name)
    assert isinstance(cls, type)
    assert safely(cls) is cls


def test_tables_hold_every_stock_policy():
    policies = {policy for cls, *_ in STOCK.values() for policy in cls.policy_aliases.values()}
    assert {safe_names.name_of(policy) for policy in policies} <= safe_names.NAMED


# --- what must not load


class Calls:
    """Pickles as the call ``function(*args)``."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call

    def __call__(self):
        """pickle wants functions to be callable, also those that are the result of a call."""


LIVE = (
    "system",
    "system, protocol 0",
    "exec",
    "eval",
    "eval, deep inside",
    "partial",
    "attrgetter",
    "methodcaller",
    "getattr",
    "import",
    "torch storage",
    "torch tensor",
    "pickle in pickle",
    "numpy constructor",
    "copyreg",
    "class by value",
    "function by value, called",
)


def live_payload(name: str, marker: Path) -> bytes:
    """A pickle that creates the file ``marker`` when pickle reads it."""
    touch, shell = f"open({str(marker)!r}, 'w').close()", Calls(os.system, f"touch {marker}")

    def torch_file(value) -> bytes:
        torch.save(value, file := io.BytesIO(), _use_new_zipfile_serialization=False)
        return file.getvalue()

    class Local:
        def __init__(self):
            self.armed = True

        def __setstate__(self, state):
            marker.touch()

    by_name = {
        "system": lambda: pickle.dumps(shell),
        "system, protocol 0": lambda: pickle.dumps(shell, protocol=0),
        "exec": lambda: pickle.dumps(Calls(exec, touch)),
        "eval": lambda: pickle.dumps(Calls(eval, touch)),
        "eval, deep inside": lambda: cloudpickle.dumps({"x": deque([FloatSchedule(0.1), (Calls(eval, touch),)])}),
        "partial": lambda: pickle.dumps(Calls(functools.partial(exec, touch))),
        "attrgetter": lambda: pickle.dumps(Calls(Calls(operator.attrgetter("touch"), marker))),
        "methodcaller": lambda: pickle.dumps(Calls(operator.methodcaller("touch"), marker)),
        "getattr": lambda: pickle.dumps(Calls(Calls(getattr, marker, "touch"))),
        "import": lambda: pickle.dumps([Calls(__import__, "this"), shell]),
        "torch storage": lambda: pickle.dumps(Calls(torch.storage._load_from_bytes, torch_file(shell))),
        "torch tensor": lambda: pickle.dumps([torch.ones(2), Calls(torch.storage._load_from_bytes, torch_file(shell))]),
        "pickle in pickle": lambda: pickle.dumps(Calls(pickle.loads, pickle.dumps(shell))),
        "numpy constructor": lambda: pickle.dumps(Calls(np.random._pickle.__generator_ctor, touch, exec)),
        "copyreg": lambda: pickle.dumps([Calls(copyreg._reconstructor, object, object, None), shell]),
        "class by value": lambda: cloudpickle.dumps(Local()),
        "function by value, called": lambda: cloudpickle.dumps(Calls(lambda: marker.touch())),
    }
    return by_name[name]()


@pytest.mark.parametrize("name", LIVE)
def test_payloads_are_live(name, tmp_path):
    """Without this the next test could pass with payloads that do nothing anyway."""
    payload = live_payload(name, tmp_path / "marker")
    with contextlib.suppress(Exception):
        pickle.loads(payload)
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize("field", ["lr_schedule", "observation_space", "policy_class", "not_a_field"])
@pytest.mark.parametrize("name", LIVE)
def test_payload_does_not_run(name, field, tmp_path, ppo_bytes):
    marker, path = tmp_path / "marker", tmp_path / "model.zip"
    path.write_bytes(with_field(ppo_bytes, field, live_payload(name, marker)))
    for load in (functools.partial(load_model, sb3.PPO), read_fields):
        with pytest.raises(UnsafeModelError, match=repr(field)) as caught:
            load(path)
        assert list(caught.value.refused) == [field]
    identify(path)
    assert not marker.exists()


def test_message_names_field_object_and_remedies(tmp_path, ppo_bytes):
    path = tmp_path / "model.zip"
    path.write_bytes(with_field(ppo_bytes, "gamma", pickle.dumps(Calls(os.system, "true"))))
    with pytest.raises(UnsafeModelError) as caught:
        load_model(sb3.PPO, path)
    for part in (
        "model.zip",
        "'gamma'",
        f"{os.name}.system",
        "custom_objects={'gamma': ...}",
        "allow=",
        "trusted=True",
    ):
        assert part in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # as it comes from a worker process


def test_all_refused_fields_are_named_at_once(tmp_path, ppo_bytes):
    path, payload = tmp_path / "model.zip", pickle.dumps(Calls(os.system, "true"))
    path.write_bytes(with_field(with_field(ppo_bytes, "gamma", payload), "seed", payload))
    with pytest.raises(UnsafeModelError) as caught:
        read_fields(path)
    assert set(caught.value.refused) == {"gamma", "seed"}


RELU = b"ctorch.nn.modules.activation\nReLU\n"
SCHEDULE = b"cstable_baselines3.common.utils\nConstantSchedule\n"
MISUSES = {  # pickles of allowed names only, used as pickle never uses them
    "call of a class that may only be named": RELU + b")R.",
    "instance of a class that may only be named": RELU + b")\x81.",
    "the same with keywords": RELU + b")}\x92.",
    "change of a class": b"cgymnasium.spaces.box\nBox\nN}U\x06sampleK\x01s\x86b.",
    "change of a function": b"cnumpy\ndtype\n}U\x01xK\x01sb.",
    "append of the file's own": SCHEDULE + b")\x81}U\x06append" + RELU + b"sbK\x01a.",
    "extend of the file's own": SCHEDULE + b")\x81}U\x06extend" + RELU + b"sb(K\x01e.",
    "setstate of the file's own": SCHEDULE + b")\x81}U\x0c__setstate__" + RELU + b"sbK\x01b.",
    "constructor of a space": b"cgymnasium.spaces.discrete\nDiscrete\nK\x02\x85R.",
    "state of a space, set by itself": b"cgymnasium.spaces.box\nBox\n)\x81}U\x0c__setstate__" + RELU + b"sbK\x01b.",
    "change of an enumeration": b"cstable_baselines3.common.type_aliases\nTrainFrequencyUnit\nU\x04step\x85R"
    b"}U\x01xK\x01sb.",
    "item of a class": RELU + b"K\x01K\x02s.",
    "items of a class": RELU + b"(K\x01K\x02u.",
    "set of the file's own": SCHEDULE + b")\x81(K\x01\x90.",
    "old instance": b"(itorch.nn.modules.activation\nReLU\n.",
    "old object": b"(" + RELU + b"o.",
    "extension": b"\x82\x01.",
    "persistent id": b"P1\n.",
    "dotted name": b"\x8c\x14gymnasium.spaces.box\x8c\x07np.load\x93.",
    "prefix of a module": b"cgymnasium.spaces\nBox\n.",
    "generator of another class": b"cnumpy.random._pickle\n__bit_generator_ctor\n" + RELU + b"\x85R.",
    "generator by constructor": b"cnumpy.random._pickle\n__generator_ctor\nU\x01x" + RELU + b"\x86R.",
    "array of another class": b"cnumpy._core.multiarray\n_reconstruct\n" + RELU + b"K\x00\x85U\x01b\x87R.",
    "array of pointers": b"cnumpy._core.numeric\n_frombuffer\n(U\x08AAAAAAAAcnumpy\ndtype\n(U\x02O8\x89\x88tR"
    b"K\x01\x85U\x01CtR.",
    "structured dtype": b"cnumpy\ndtype\n(U\x02V8\x89\x88tR.",
    "dtype with pointer flags": b"cnumpy\ndtype\n(U\x02i8\x89\x88tR(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xff"
    b"K\x3ftb.",
    "dtype from fields": b"cnumpy\ndtype\n(}\x89\x88tR.",
    "deque of a long iterator": b"ccollections\ndeque\nU\x01x\x85R.",
    "seed sequence of another class": b"cnumpy.random.bit_generator\n__pyx_unpickle_SeedSequence\n"
    + RELU
    + b"K\x01N\x87R.",
}


@pytest.mark.parametrize("name", MISUSES)
def test_misuse_of_allowed_names_is_an_error(name, tmp_path, ppo_bytes):
    path = tmp_path / "model.zip"
    path.write_bytes(with_field(ppo_bytes, "gamma", b"\x80\x04" + MISUSES[name]))
    with pytest.raises(ModelFileError, match="'gamma'"):
        read_fields(path)


def test_shared_dtypes_of_numpy_are_not_changed():
    swap = b"\x80\x02cnumpy\ndtype\n(U\x02f8\x89\x89tR(K\x03U\x01>NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb."
    assert SafeReader().read(swap) == np.dtype(">f8")
    assert np.dtype("f8").isnative


@pytest.mark.parametrize(("kind", "place"), [("MT19937", "pos"), ("Philox", "buffer_pos")])
def test_random_state_that_points_outside_its_memory_is_refused(kind, place):
    state = getattr(np.random, kind)(0).state
    (state["state"] if place == "pos" else state)[place] = 10**6
    pickled = b"\x80\x04cnumpy.random._pickle\n__bit_generator_ctor\nU" + bytes([len(kind)]) + kind.encode() + b"\x85R"
    with pytest.raises(pickle.UnpicklingError, match="random state"):
        SafeReader().read(pickled + pickle.dumps(state, 4)[2:-1] + b"b.")


def test_tensor_outside_its_storage_is_refused():
    class Outside:
        def __reduce__(self):
            storage = torch.ones(2).storage()
            return torch._utils._rebuild_tensor_v2, (storage, 0, (1000,), (1,), False, OrderedDict())

    with pytest.warns(UserWarning, match="TypedStorage"):
        pickled = pickle.dumps(Outside())
    with pytest.raises(RuntimeError, match="out of bounds"):
        SafeReader().read(pickled)


def test_tensors_with_code_are_refused(tmp_path, ppo_bytes):
    marker = tmp_path / "marker"
    torch.save({"x": Calls(os.system, f"touch {marker}")}, file := io.BytesIO())
    (tmp_path / "model.zip").write_bytes(with_members(ppo_bytes, **{"policy.pth": file.getvalue()}))
    with pytest.raises(ModelFileError, match=r"'policy\.pth' is not a file of tensors"):
        load_model(sb3.PPO, tmp_path / "model.zip")
    assert not marker.exists()


def test_broken_and_bloated_tensor_members_are_model_file_errors(ppo_bytes):
    torch.save({"x": torch.zeros(25 * 2**20)}, file := io.BytesIO())
    bloated = io.BytesIO()
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(bloated, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    for member in (b"", b"x", bloated.getvalue()):
        with pytest.raises(ModelFileError, match=r"'policy\.pth' is not a file of tensors"):
            load_model(sb3.PPO, io.BytesIO(with_members(ppo_bytes, **{"policy.pth": member})))


def test_lambda_schedule_is_refused_but_loads_with_custom_objects_or_trust(tmp_path):
    path = tmp_path / "model.zip"
    tiny_ppo(learning_rate=lambda progress: 1e-3 * progress).save(path)
    with pytest.raises(UnsafeModelError, match="stored as code") as caught:
        load_model(sb3.PPO, path)
    assert set(caught.value.refused) == {"learning_rate", "lr_schedule"}
    replaced = load_model(sb3.PPO, path, custom_objects={"learning_rate": 0.5, "lr_schedule": None})
    assert replaced.lr_schedule(1.0) == 0.5
    assert load_model(sb3.PPO, path, trusted=True).lr_schedule(0.5) == 0.5e-3


@pytest.mark.parametrize("own", [OwnSchedule(1e-3), own_schedule], ids=["class", "function"])
def test_own_importable_schedule_loads_when_allowed(own, tmp_path, monkeypatch):
    path, vouched = tmp_path / "model.zip", own if own is own_schedule else OwnSchedule
    tiny_ppo(learning_rate=own).save(path)
    with pytest.raises(UnsafeModelError, match=vouched.__name__):
        load_model(sb3.PPO, path)
    assert load_model(sb3.PPO, path, allow=[vouched]).lr_schedule(0.5) == 0.5e-3
    monkeypatch.setattr(safe_names, "_registered", {})
    assert register_safe_class(vouched) is vouched
    assert load_model(sb3.PPO, path).lr_schedule(0.5) == 0.5e-3


def test_class_being_loaded_vouches_for_its_own_policies(tmp_path, monkeypatch):
    path = tmp_path / "model.zip"
    sb3.PPO(OwnPolicy, Toy(ACTION), n_steps=4, batch_size=4).save(path)
    with pytest.raises(UnsafeModelError, match="OwnPolicy"):
        load_model(sb3.PPO, path)
    monkeypatch.setattr(sb3.PPO, "policy_aliases", {"OwnPolicy": OwnPolicy})
    assert type(load_model(sb3.PPO, path).policy) is OwnPolicy


def test_what_cannot_be_allowed():
    with pytest.raises(TypeError, match="a class or a function"):
        register_safe_class(OwnSchedule(1.0).slope)
    with pytest.raises(ValueError, match="stored as code"):
        register_safe_class(lambda: None)
    with pytest.raises(ValueError, match="stored as code"):
        SafeReader(allow=[type("Scripted", (), {"__module__": "__main__", "__qualname__": "Scripted"})])


# --- damage


def test_cut_flipped_and_zeroed_files_are_model_file_errors(ppo_bytes):
    rng = np.random.default_rng(0)
    size, survived = len(ppo_bytes), 0
    for trial in range(60):
        damaged = bytearray(ppo_bytes)
        place = int(rng.integers(size))
        if trial % 3 == 0:
            del damaged[place:]
        elif trial % 3 == 1:
            damaged[place : place + 64] = bytes(len(damaged[place : place + 64]))
        else:
            damaged[place] ^= 1 << rng.integers(8)
        try:
            load_model(sb3.PPO, io.BytesIO(damaged))
            survived += 1
        except ModelFileError:
            pass
    assert survived <= 3  # dates and attributes in the directory of the zip mean nothing


@pytest.mark.parametrize("content", [b"", b"PK", b"not a zip", bytes(1000), zipfile.ZipFile])
def test_other_files_are_model_file_errors(content, tmp_path):
    path = tmp_path / "model.zip"
    if content is zipfile.ZipFile:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("readme.txt", "hello")
    else:
        path.write_bytes(content)
    for read in (read_fields, identify, functools.partial(load_model, sb3.PPO)):
        with pytest.raises(ModelFileError, match=r"model\.zip is cut short or not a model file"):
            read(path)


def test_cut_file_is_named_as_such(ppo_bytes):
    """Python's zipfile takes the directory of a tensor file inside for that of the whole."""
    with zipfile.ZipFile(io.BytesIO(ppo_bytes)) as archive:
        end = archive.getinfo("policy.optimizer.pth").header_offset
    with pytest.raises(ModelFileError, match=r"cut short.*no member 'data'"):
        read_fields(io.BytesIO(ppo_bytes[:end]))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"[]", "not an object"),
        (b"{", "cut short"),
        (b"[" * 50_000, "cut short"),
        (b'{"a":' + b"9" * 5000 + b"}", "cut"),
    ],
)
def test_broken_json(data, message, ppo_bytes):
    with pytest.raises(ModelFileError, match=message):
        read_fields(io.BytesIO(with_members(ppo_bytes, data=data)))


def test_damaged_member_is_named_also_if_only_fields_are_read(ppo_bytes):
    with zipfile.ZipFile(io.BytesIO(ppo_bytes)) as archive:
        start = archive.getinfo("policy.pth").header_offset
    damaged = bytearray(ppo_bytes)
    damaged[start + 1000] ^= 1
    with pytest.raises(ModelFileError, match=r"checksum of its member 'policy\.pth' is wrong"):
        read_fields(io.BytesIO(damaged))


def test_large_data_are_refused_even_if_the_file_is_as_large(ppo_bytes, monkeypatch):
    monkeypatch.setattr(model_archive, "MAX_DATA_BYTES", 1000)
    with pytest.raises(ModelFileError, match="bytes of 'data'; 1000 are allowed"):
        read_fields(io.BytesIO(ppo_bytes))


def test_messages_stay_short(ppo_bytes):
    with pytest.raises(ModelFileError) as caught:  # a UnicodeDecodeError holds all the bytes
        read_fields(io.BytesIO(with_members(ppo_bytes, data=b'{"a": "' + bytes([200]) * 100_000 + b'"}')))
    assert len(str(caught.value)) < 300


def test_missing_field_is_named(ppo_bytes):
    with pytest.raises(ModelFileError, match="no action_space, no observation_space, no policy_class"):
        load_model(sb3.PPO, io.BytesIO(with_members(ppo_bytes, data=b'{"gamma": 1}')))


def test_missing_file_is_no_model_file_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_model(sb3.PPO, tmp_path / "nothing")


def squeezed(**members: bytes) -> bytes:
    with zipfile.ZipFile(out := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return out.getvalue()


def with_pickled(pickled: bytes) -> bytes:
    return squeezed(data=json.dumps({"gamma": {":serialized:": base64.b64encode(pickled).decode()}}).encode())


NUMBERS = b"(" + b"".join(b"J" + i.to_bytes(4, "little") for i in range(200_000)) + b"l"
TRAIN_FREQ = b"cstable_baselines3.common.type_aliases\nTrainFreq\n"
TRAIN_FREQ_UNIT = b"cstable_baselines3.common.type_aliases\nTrainFrequencyUnit\n"
DOUBLED = b"]q\x010" + 40 * b"](h\x01h\x01eq\x010"  # l = [l, l], again and again; in the memo at 1
BOMBS = {
    "large data": lambda: squeezed(data=b'{"a": "' + b" " * (65 * 2**20) + b'"}'),
    "large tensors": lambda: squeezed(data=b"{}", **{f"{i}.pth": bytes(20 * 2**20) for i in range(4)}),
    "many values": lambda: squeezed(data=b'{"a": [' + b"[]," * 2_000_000 + b"0]}"),
    "many pickled lists": lambda: with_pickled(b"\x80\x04(" + b"]" * 2_000_000 + b"l."),
    "promised bytearray": lambda: with_pickled(b"\x80\x05\x96" + (2**30).to_bytes(8, "little") + b"x."),
    "copies of a list": lambda: with_pickled(
        b"\x80\x04" + NUMBERS + b"\x940(" + b"ccollections\ndeque\nh\x00\x85R" * 1000 + b"l."
    ),
    "hash of doubled tuples": lambda: with_pickled(b"\x80\x04})" + b"2\x86" * 60 + b"K\x01s."),
    "hash of doubled named tuples": lambda: with_pickled(
        b"\x80\x04}"
        + TRAIN_FREQ
        + b"\x940)"
        + 60 * b"q\x010h\x00h\x01h\x01\x86\x81"
        + b"K\x01s."  # t = TrainFreq(t, t)
    ),
    "text of an enumeration": lambda: with_pickled(b"\x80\x04" + DOUBLED + TRAIN_FREQ_UNIT + b"h\x01\x85R."),
    "text of a bound": lambda: with_pickled(
        b"\x80\x04"
        + DOUBLED
        + b"cgymnasium.spaces.box\nBox\n)\x81}(U\x05dtypecnumpy\ndtype\n(U\x02f4\x89\x88tRU\x06_shape)"
        b"U\x03low" + SCHEDULE + b")\x81}(U\x04sizeK\x00U\x03valh\x01ubU\x04highK\x01ub."
    ),
    "text of a name": lambda: with_pickled(
        b"\x80\x04" + DOUBLED + SCHEDULE + b")\x81}(U\x0c__qualname__h\x01U\x0a__module__h\x01ub)R."
    ),
    "hash of deep tuples": lambda: with_pickled(b"\x80\x04})" + b"\x85" * 300_000 + b"K\x01s."),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_in_little_memory(name):
    content = BOMBS[name]()
    tracemalloc.start()
    try:
        with pytest.raises(ModelFileError):
            read_fields(io.BytesIO(content))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 * len(content) + 200 * 2**20


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(data=st.data())
def test_mutated_pickles_raise_nothing_else(data, ppo_bytes):
    """Behind valid checksums: bytes of the pickles themselves are changed, dropped or repeated."""
    with zipfile.ZipFile(io.BytesIO(ppo_bytes)) as archive:
        fields = json.loads(archive.read("data"))
    name = data.draw(st.sampled_from([n for n, v in fields.items() if isinstance(v, dict) and ":serialized:" in v]))
    pickled = bytearray(base64.b64decode(fields[name][":serialized:"]))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(pickled)))
        pickled[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    with contextlib.suppress(ModelFileError):
        read_fields(io.BytesIO(with_field(ppo_bytes, name, bytes(pickled))))


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(data=st.data())
def test_mutated_files_raise_nothing_else(data, ppo_bytes):
    content = bytearray(ppo_bytes[-2000:] if data.draw(st.booleans()) else ppo_bytes)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content)))
        content[place : place + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
    with contextlib.suppress(ModelFileError):
        read_fields(io.BytesIO(content))


# --- writing


def test_stock_loader_reads_our_file_and_we_say_what_it_is(tmp_path):
    model = tiny_ppo()
    save_model(model, tmp_path / "new" / "model")
    path = tmp_path / "new" / "model.zip"
    assert os.listdir(path.parent) == ["model.zip"]
    assert identify(path) == "ppo"
    loaded = sb3.PPO.load(path)
    assert all(map(torch.equal, tensors(model).values(), tensors(loaded).values()))
    with zipfile.ZipFile(path) as archive:
        identity = json.loads(archive.read("sb3_pg_ext.json"))
    assert identity == {
        "class": "stable_baselines3.ppo.ppo:PPO",
        "parents": ["stable_baselines3.common.on_policy_algorithm:OnPolicyAlgorithm"],
        "key": None,
        "sb3_pg_ext": "0.1.0",
    }
    assert load_model(sb3.PPO, str(path.with_suffix(""))).num_timesteps == 0


def test_exclude_and_include_are_upstreams(tmp_path):
    model = tiny_ppo(verbose=0)
    save_model(model, tmp_path / "model", exclude=["gamma", "seed"], include=["seed"])
    fields = read_fields(tmp_path / "model")
    assert "gamma" not in fields
    assert fields["seed"] == 0


def test_folder_of_that_name_costs_no_model(tmp_path):
    (tmp_path / "model.zip").mkdir()
    with pytest.warns(UserWarning, match="is a folder"):
        save_model(tiny_ppo(), tmp_path / "model")
    assert load_model(sb3.PPO, tmp_path / "model.zip_2").n_steps == 4


def test_file_objects_stay_open_and_keep_their_place(tmp_path):
    model = tiny_ppo()
    with open(tmp_path / "two", "w+b") as file:
        file.write(b"prefix")
        save_model(model, file)
        assert not file.closed
        file.seek(3)
        for read in (read_fields, identify, functools.partial(load_model, sb3.PPO)):
            read(file)
            assert file.tell() == 3
    buffer = io.BytesIO()
    save_model(model, buffer)
    loaded = sb3.PPO.load(buffer)
    assert all(map(torch.equal, tensors(model).values(), tensors(loaded).values()))
    with pytest.raises(TypeError, match="invalid type"):
        save_model(model, io.StringIO())


def test_every_failing_write_leaves_the_old_file_whole(tmp_path, monkeypatch):
    old, new, path = tiny_ppo(), tiny_ppo(gamma=0.5), tmp_path / "model.zip"
    save_model(old, path)
    content = path.read_bytes()

    class Failing(io.FileIO):
        left = 0

        def write(self, data):
            Failing.left -= 1
            if Failing.left < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)

    monkeypatch.setattr(model_file, "open", lambda p, mode: io.BufferedRandom(Failing(p, mode)), raising=False)
    for n in range(1000):
        Failing.left = n
        with contextlib.suppress(OSError):
            save_model(new, path)
            break
        assert path.read_bytes() == content
        assert os.listdir(tmp_path) == ["model.zip"]
    assert n > 10
    assert load_model(sb3.PPO, path).gamma == 0.5


@pytest.mark.parametrize("name", ["replace", "fsync"])
def test_failing_system_call_leaves_the_old_file_whole(name, tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_text("old")

    def fail(*args):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(atomic_file.os, name, fail)
    with pytest.raises(OSError, match="Input/output"), atomic_write(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]


def test_atomic_write_replaces_only_on_success(tmp_path):
    path = tmp_path / "deep" / "a.txt"
    with atomic_write(path) as temporary:
        temporary.write_text("first")
        assert temporary.parent == path.parent
        assert temporary.name.startswith(f".a.txt.{os.getpid()}.")
        assert temporary.suffix == ".tmp"
        assert not path.exists()
    with contextlib.suppress(KeyboardInterrupt), atomic_write(path) as temporary:
        temporary.write_text("second")
        raise KeyboardInterrupt
    assert path.read_text() == "first"
    assert os.listdir(path.parent) == ["a.txt"]


def test_atomic_write_keeps_mode_and_follows_links(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "real").chmod(0o640)
    (tmp_path / "link").symlink_to("real")
    with atomic_write(tmp_path / "link") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"
    assert stat.S_IMODE((tmp_path / "real").stat().st_mode) == 0o640


def test_atomic_write_refuses_folders_and_leaves_pipes_in_place(tmp_path):
    with pytest.raises(IsADirectoryError, match="is a folder"), atomic_write(tmp_path):
        pass
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with atomic_write(pipe) as target:
        assert target == pipe
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_strays_of_dead_processes_are_swept_and_others_kept(tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    host, other = atomic_file._HOST, "00000000" if atomic_file._HOST != "00000000" else "11111111"
    swept = [f".a.{dead.pid}.{host}01234567.tmp", f".a.1.{other}89abcdef.tmp"]
    kept = [
        f".a.{os.getpid()}.{host}01234567.tmp",  # alive
        f".a.{dead.pid}.{other}01234567.tmp",  # of another host
        f".b.{dead.pid}.{host}01234567.tmp",  # of another target
        f".a.{dead.pid}.tmp",  # not ours
    ]
    for name in swept + kept:
        (tmp_path / name).touch()
    os.utime(tmp_path / swept[1], (0, 0))  # forgotten long ago
    with atomic_write(tmp_path / "a") as temporary:
        temporary.touch()
    assert sorted(os.listdir(tmp_path)) == sorted([*kept, "a"])


KILLS = """
import os, random, signal, sys, time
import stable_baselines3 as sb3
from sb3_pg_ext.bases.model_file import load_model, save_model

path, kills = sys.argv[1], int(sys.argv[2])
model = sb3.PPO("MlpPolicy", "CartPole-v1", policy_kwargs={"net_arch": [256, 256]}, device="cpu")
save_model(model, path)
random.seed(0)
for kill in range(kills):
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        while os.getppid() == parent:
            save_model(model, path)
        os._exit(0)
    end = time.monotonic() + random.uniform(0.02, 0.12)
    while time.monotonic() < end:
        load_model(sb3.PPO, path)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    load_model(sb3.PPO, path)
strays = len(os.listdir(os.path.dirname(path))) - 1
save_model(model, path)
print("strays", strays, "left", len(os.listdir(os.path.dirname(path))) - 1)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_while_saving_and_read_while_saving(tmp_path):
    """kill -9 at random moments of back-to-back saves, with a reader all the while: every load succeeds."""
    command = [sys.executable, "-c", KILLS, str(tmp_path / "model.zip"), "15"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split()[2:] == ["left", "0"]


# --- whose file


@pytest.mark.parametrize("key", STOCK)
def test_stock_files_are_identified(key):
    trained(key).save(file := io.BytesIO())
    assert identify(file) == key


@pytest.mark.parametrize("key", ["ppo", "maskable_ppo", "recurrent_ppo", "sac", "td3", "ddpg", "a2c"])
def test_stock_files_with_a_policy_of_ones_own_are_identified(key):
    trained(key).save(file := io.BytesIO())
    with zipfile.ZipFile(file) as archive:
        fields = json.loads(archive.read("data"))
    fields["policy_class"]["__module__"] = "somebody.elses"
    assert identify(io.BytesIO(with_members(file.getvalue(), data=json.dumps(fields).encode()))) == key


def test_ambiguous_file_is_an_error_that_says_what_to_do():
    trained("dqn").save(file := io.BytesIO())
    with zipfile.ZipFile(file) as archive:
        fields = json.loads(archive.read("data"))
    fields["policy_class"]["__module__"] = "somebody.elses"
    with pytest.raises(ModelFileError, match=r"dqn or qrdqn: use get\(key\).cls.load"):
        identify(io.BytesIO(with_members(file.getvalue(), data=json.dumps(fields).encode())))
    with pytest.raises(ModelFileError, match=r"none that is registered: use get\(key\).cls.load"):
        identify(io.BytesIO(with_members(file.getvalue(), data=b'{"x": 1}')))


class Registered(sb3.PPO):
    """An algorithm of another package that saves through us."""

    save = save_model


def test_identity_is_the_key_under_which_the_class_is_registered(tmp_path, monkeypatch):
    model = Registered("MlpPolicy", Toy(ACTION), n_steps=4, batch_size=4)
    model.save(tmp_path / "mine")
    with pytest.raises(ModelFileError, match=r"Registered', which is not registered"):
        identify(tmp_path / "mine")
    monkeypatch.setattr(registry, "_registered", {})
    monkeypatch.setattr(registry, "_specs", {})
    registry.register("mine", AlgorithmSpec(Registered, family="on_policy", paper="none"))
    assert type(registry.load(tmp_path / "mine")) is Registered


def test_file_of_our_own_algorithm_says_its_key_and_nothing_else_is_loaded(tmp_path):
    reinforce = registry.get("reinforce").cls
    reinforce("MlpPolicy", Toy(ACTION)).save(tmp_path / "model")
    assert model_file.identify(tmp_path / "model", ["reinforce"], lambda: pytest.fail("no need")) == "reinforce"
    assert type(registry.load(tmp_path / "model")) is reinforce


# --- whose file, and who may load it


def saved(cls, **kwargs) -> bytes:
    cls("MlpPolicy", Toy(ACTION), policy_kwargs={"net_arch": [4]}, device="cpu", **kwargs).save(file := io.BytesIO())
    return file.getvalue()


def with_identity(content: bytes, **changes) -> io.BytesIO:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        identity = json.loads(archive.read("sb3_pg_ext.json")) | changes
    return io.BytesIO(with_members(content, **{"sb3_pg_ext.json": json.dumps(identity).encode()}))


@pytest.mark.parametrize(("one", "other"), [("svg1", "mbpg"), ("npg", "ppo_penalty"), ("ispg", "rwr"), ("cem", "es")])
def test_classes_that_store_the_same_do_not_load_each_other(one, other):
    one, other = registry.get(one).cls, registry.get(other).cls
    for writer, reader in ((one, other), (other, one)):
        content, words = saved(writer), rf"holds a model of {writer.__name__}, not of {reader.__name__}\."
        with pytest.raises(ModelFileError, match=rf"{words} sb3_pg_ext\.load.*{writer.__name__}\.load"):
            reader.load(io.BytesIO(content))
        assert type(registry.load(io.BytesIO(content))) is writer


def test_a_class_that_has_moved_is_still_the_same():
    npg = registry.get("npg").cls
    content = saved(npg)
    assert type(npg.load(with_identity(content, **{"class": "old.place:NPG"}))) is npg
    assert type(npg.load(with_identity(content, **{"class": "old.place:Outer.Mine", "parents": ["a.b:NPG"]}))) is npg
    for parents in (["a.b:NPGX"], [], None, 3, [None], {"NPG": 1}):
        with pytest.raises(ModelFileError, match="holds a model of Mine, not of NPG"):
            npg.load(with_identity(content, **{"class": "old.place:Outer.Mine", "parents": parents}))
    for nonsense in (None, 3, [], {}):
        with pytest.raises(ModelFileError, match="not of NPG"):
            npg.load(with_identity(content, **{"class": nonsense, "parents": []}))


def test_what_says_nothing_of_its_class_was_not_written_by_ours(ppo_bytes):
    with pytest.raises(ModelFileError, match=r"does not say which class wrote it.*no model of NPG.*sb3_pg_ext\.load"):
        registry.get("npg").cls.load(io.BytesIO(ppo_bytes))
    assert type(load_model(sb3.PPO, io.BytesIO(ppo_bytes))) is sb3.PPO
    with pytest.raises(ModelFileError, match="holds a model of NPG, not of PPO"):
        load_model(sb3.PPO, io.BytesIO(saved(registry.get("npg").cls)))


@pytest.mark.parametrize("trusted", [False, True])
def test_mistyped_arguments_are_named_for_every_class(trusted):
    for key in ("ppo", "ddpg", "sac", "recurrent_ppo"):
        trained(key).save(file := io.BytesIO())
        with pytest.raises(TypeError, match=rf"{registry.get(key).cls.__name__}.load.*'gamme'.*'gamma'"):
            registry.load(file, trusted=trusted, gamme=0.5)
        assert registry.load(file, trusted=trusted, gamma=0.5).gamma == 0.5
    assert load_model(sb3.DDPG, io.BytesIO(_bytes("ddpg")), policy_delay=1).policy_delay == 1  # as it is stored


def _bytes(key: str) -> bytes:
    trained(key).save(file := io.BytesIO())
    return file.getvalue()


def test_attributes_that_are_not_in_the_file_may_be_set():
    buffer = trained("sac").replay_buffer
    assert load_model(sb3.SAC, io.BytesIO(_bytes("sac")), replay_buffer=buffer).replay_buffer is buffer
    content = saved(registry.get("cem").cls)
    with pytest.raises(TypeError, match="common_seeds='no'"):
        registry.load(io.BytesIO(content), common_seeds="no")
    assert registry.load(io.BytesIO(content), common_seeds=True).common_seeds is True


OWN = [key for key in registry.keys() if registry.get(key).cls.__module__.startswith("sb3_pg_ext.")]  # noqa: SIM118


@pytest.mark.parametrize("trusted", [False, True])
@pytest.mark.parametrize("key", OWN)
def test_values_that_the_constructor_refuses_are_refused_when_loading(key, trusted):
    cls = registry.get(key).cls
    content = saved(cls)
    for name, value in (("learning_rate", "fast"), ("gamma", 5), ("population_size", 0)):
        if name not in registry.get(key).defaults:
            continue
        with pytest.raises((ValueError, TypeError)) as wanted:
            cls("MlpPolicy", Toy(ACTION), **{name: value})
        for load in (cls.load, registry.load):
            with pytest.raises(wanted.type) as found:
                load(io.BytesIO(content), trusted=trusted, **{name: value})
            assert str(found.value) == str(wanted.value)
    assert cls.load(io.BytesIO(content), trusted=trusted, learning_rate=0.25, seed=3).learning_rate == 0.25


def test_values_are_judged_beside_those_in_the_file():
    es = registry.get("es").cls
    odd = saved(es, sampling="independent", population_size=5)
    assert es.load(io.BytesIO(odd), population_size=7).population_size == 7
    with pytest.raises(ValueError, match="population_size=5: antithetic candidates come in pairs"):
        es.load(io.BytesIO(odd), sampling="antithetic")


@pytest.mark.parametrize("trusted", [False, True])
def test_values_are_judged_beside_the_number_of_environments(ppo_bytes, trusted):
    def load(**kwargs):
        return load_model(sb3.PPO, io.BytesIO(ppo_bytes), trusted=trusted, **kwargs)

    for refused in (0, 1):  # by the constructor, if it has an environment
        with pytest.raises(AssertionError, match=rf"Currently n_steps={refused} and n_envs=1"):
            load(n_steps=refused)
        with pytest.raises(AssertionError, match=rf"Currently n_steps={refused} and n_envs=1"):
            load(n_steps=refused, env=Toy(ACTION))
    assert load(n_steps=1, normalize_advantage=False).n_steps == 1
    assert load(n_steps=1, env=DummyVecEnv([lambda: Toy(ACTION)] * 2)).rollout_buffer.n_envs == 2


def test_environments_by_the_billion_in_a_file_cost_nothing(ppo_bytes):
    with zipfile.ZipFile(io.BytesIO(ppo_bytes)) as archive:
        fields = json.loads(archive.read("data"))
    fields["n_envs"] = 10**10
    content = with_members(ppo_bytes, data=json.dumps(fields).encode())
    with pytest.raises(AssertionError, match="batch_size"):
        load_model(sb3.PPO, io.BytesIO(content), batch_size=1)


def test_a_file_with_a_value_that_is_not_taken_any_more_can_still_be_changed():
    reinforce = registry.get("reinforce").cls
    model = reinforce("MlpPolicy", Toy(ACTION), policy_kwargs=dict(NET), device="cpu")
    model.baseline = "of an older version"
    model.save(file := io.BytesIO())
    assert reinforce.load(file, learning_rate=0.25).learning_rate == 0.25


def test_what_is_trusted_may_be_larger_than_what_is_not(ppo_bytes, monkeypatch):
    monkeypatch.setattr(model_archive, "MAX_DATA_BYTES", 10)
    with pytest.raises(ModelFileError, match="10 are allowed"):
        load_model(sb3.PPO, io.BytesIO(ppo_bytes))
    assert load_model(sb3.PPO, io.BytesIO(ppo_bytes), trusted=True).num_timesteps == 8


# --- normalisation statistics


def normalized(steps: int = 5) -> VecNormalize:
    env = VecNormalize(DummyVecEnv([lambda: Toy(ACTION)]))
    env.reset()
    for _ in range(steps):
        env.step(np.zeros((1, 2)))
    return env


def test_vec_normalize_loads_with_equal_statistics(tmp_path):
    env = normalized()
    env.save(tmp_path / "norm.pkl")
    loaded = load_vec_normalize(tmp_path / "norm.pkl", DummyVecEnv([lambda: Toy(ACTION)]))
    assert equal(loaded.obs_rms, env.obs_rms)
    assert equal(loaded.ret_rms, env.ret_rms)
    loaded.reset()
    loaded.step(np.zeros((1, 2)))


def test_hostile_damaged_and_other_vec_normalize_files(tmp_path):
    path, venv, marker = tmp_path / "norm.pkl", DummyVecEnv([lambda: Toy(ACTION)]), tmp_path / "marker"
    path.write_bytes(live_payload("system", marker))
    with pytest.raises(UnsafeModelError, match="system"):
        load_vec_normalize(path, venv)
    assert not marker.exists()
    env = normalized()
    env.save(path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ModelFileError, match="cut short"):
        load_vec_normalize(path, venv)
    path.write_bytes(pickle.dumps(FloatSchedule(1.0)))
    with pytest.raises(ModelFileError, match="FloatSchedule, not a VecNormalize"):
        load_vec_normalize(path, venv)
