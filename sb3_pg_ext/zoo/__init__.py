"""A bridge to rl_zoo3: its commands, with every algorithm of the registry.

``python -m sb3_pg_ext.zoo train --algo reinforce --env CartPole-v1 -n 100000`` is rl_zoo3's ``train`` with this
package's algorithms, search spaces and tuned settings. In a script of your own, :func:`~sb3_pg_ext.zoo.bridge.install`
does the same to the rl_zoo3 of the process. Nothing here loads rl_zoo3 before it is asked to.
"""
