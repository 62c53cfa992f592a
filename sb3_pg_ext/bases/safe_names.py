"""What a pickle in a model file may name and make.

The tables hold what Stable-Baselines3 and sb3-contrib write into their files, found by recording it over their
algorithms, policies and options. They are exact pairs of module and name, never prefixes or kinds of objects: a prefix
such as ``operator.*`` lets in the one function too many.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

T = TypeVar("T", bound=Callable[..., Any])
Name = tuple[str, str]


def _pairs(table: Mapping[str, str]) -> frozenset[Name]:
    return frozenset((module, name) for module, names in table.items() for name in names.split())


# A file may only name these, not make or change them. Later, constructors take them from policy_kwargs and the like and
# call them with arguments from the file: each must be harmless even then.
NAMED = _pairs(
    {
        # policies
        "stable_baselines3.common.policies": "ActorCriticPolicy ActorCriticCnnPolicy MultiInputActorCriticPolicy",
        "stable_baselines3.dqn.policies": "DQNPolicy CnnPolicy MultiInputPolicy",
        "stable_baselines3.sac.policies": "SACPolicy CnnPolicy MultiInputPolicy",
        "stable_baselines3.td3.policies": "TD3Policy CnnPolicy MultiInputPolicy",
        "sb3_contrib.ars.policies": "ARSPolicy ARSLinearPolicy",
        "sb3_contrib.crossq.policies": "CrossQPolicy",
        "sb3_contrib.qrdqn.policies": "QRDQNPolicy CnnPolicy MultiInputPolicy",
        "sb3_contrib.tqc.policies": "TQCPolicy CnnPolicy MultiInputPolicy",
        "sb3_contrib.common.maskable.policies": (
            "MaskableActorCriticPolicy MaskableActorCriticCnnPolicy MaskableMultiInputActorCriticPolicy"
        ),
        "sb3_contrib.common.recurrent.policies": (
            "RecurrentActorCriticPolicy RecurrentActorCriticCnnPolicy RecurrentMultiInputActorCriticPolicy"
        ),
        # what policy_kwargs may hold
        "stable_baselines3.common.torch_layers": "FlattenExtractor NatureCNN CombinedExtractor",
        "stable_baselines3.common.sb2_compat.rmsprop_tf_like": "RMSpropTFLike",
        "torch.nn.modules.activation": (
            "CELU ELU GELU Hardshrink Hardsigmoid Hardswish Hardtanh LeakyReLU LogSigmoid Mish PReLU RReLU ReLU ReLU6 "
            "SELU SiLU Sigmoid Softplus Softshrink Softsign Tanh Tanhshrink"
        ),
        "torch.nn.modules.linear": "Identity",
        "torch.optim.adadelta": "Adadelta",
        "torch.optim.adagrad": "Adagrad",
        "torch.optim.adam": "Adam",
        "torch.optim.adamax": "Adamax",
        "torch.optim.adamw": "AdamW",
        "torch.optim.asgd": "ASGD",
        "torch.optim.nadam": "NAdam",
        "torch.optim.radam": "RAdam",
        "torch.optim.rmsprop": "RMSprop",
        "torch.optim.rprop": "Rprop",
        "torch.optim.sgd": "SGD",
        # buffers
        "stable_baselines3.common.buffers": (
            "ReplayBuffer DictReplayBuffer NStepReplayBuffer RolloutBuffer DictRolloutBuffer"
        ),
        "stable_baselines3.her.her_replay_buffer": "HerReplayBuffer",
        "sb3_contrib.common.maskable.buffers": "MaskableRolloutBuffer MaskableDictRolloutBuffer",
        "sb3_contrib.common.recurrent.buffers": "RecurrentRolloutBuffer RecurrentDictRolloutBuffer",
        # kinds of numbers and of random generators
        "numpy": "ndarray bool bool_ float16 float32 float64 int8 int16 int32 int64 uint8 uint16 uint32 uint64",
        "numpy.random._mt19937": "MT19937",
        "numpy.random._pcg64": "PCG64 PCG64DXSM",
        "numpy.random._philox": "Philox",
        "numpy.random._sfc64": "SFC64",
        "numpy.random.bit_generator": "SeedSequence",
    }
)

# A file may make these without calling their constructors, and give them a state, which they only store.
MADE = _pairs(
    {
        "gymnasium.spaces.box": "Box",
        "gymnasium.spaces.dict": "Dict",
        "gymnasium.spaces.discrete": "Discrete",
        "gymnasium.spaces.graph": "Graph",
        "gymnasium.spaces.multi_binary": "MultiBinary",
        "gymnasium.spaces.multi_discrete": "MultiDiscrete",
        "gymnasium.spaces.oneof": "OneOf",
        "gymnasium.spaces.sequence": "Sequence",
        "gymnasium.spaces.text": "Text",
        "gymnasium.spaces.tuple": "Tuple",
        "stable_baselines3.common.noise": "NormalActionNoise OrnsteinUhlenbeckActionNoise VectorizedActionNoise",
        "stable_baselines3.common.running_mean_std": "RunningMeanStd",
        "stable_baselines3.common.type_aliases": "TrainFreq",
        "stable_baselines3.common.utils": "ConstantSchedule FloatSchedule LinearSchedule",
        "stable_baselines3.common.vec_env.vec_normalize": "VecNormalize",
    }
)

# Classes of other packages, and those of Stable-Baselines3 that take their place, with their states; the others are not
# imported.
STAND_INS: dict[Name, Name] = {
    ("rl_zoo3.utils", "SimpleLinearSchedule"): ("stable_baselines3.common.utils", "LinearSchedule"),
}

_registered: dict[Name, Any] = {}


def register_safe_class(cls: T) -> T:
    """Vouch for a class of your own, or a function such as a schedule: model files may then hold it.

    Works as a decorator.

    :param cls: importable as ``cls.__module__`` and ``cls.__qualname__``
    :return: ``cls``
    :raises TypeError: neither a class nor a function
    :raises ValueError: defined in a script, a notebook or a function, and so stored as code, which a safe load refuses
    """
    _registered[name_of(cls)] = cls
    return cls


def allowed(extra: Iterable[Any]) -> dict[Name, Any]:
    """Name -> class or function, for all that are registered and those in ``extra``."""
    return _registered | {name_of(cls): cls for cls in extra}


def name_of(cls: Any) -> Name:
    """Module and name under which a pickle refers to ``cls``; errors as for :func:`register_safe_class`."""
    module, name = getattr(cls, "__module__", None), getattr(cls, "__qualname__", None)
    if not callable(cls) or not isinstance(module, str) or not isinstance(name, str):
        raise TypeError(f"{cls!r} cannot be allowed in model files: a class or a function is needed")
    if not is_importable(cls):
        raise ValueError(
            f"{module}.{name} cannot be allowed in model files: what is defined in a script, a notebook or a function "
            "is stored as code. Move it to a module that can be imported."
        )
    return module, name


def is_importable(cls: Any) -> bool:
    """Whether pickles refer to ``cls`` by its name instead of storing its code."""
    return cls.__module__ != "__main__" and "<" not in cls.__qualname__
