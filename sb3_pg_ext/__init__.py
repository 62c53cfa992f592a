"""The policy-gradient family for Stable-Baselines3."""

__version__ = "0.1.0"
