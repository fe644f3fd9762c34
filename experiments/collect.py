"""Demonstrates the pretraining tasks and stores the trajectories on disk (App. C.1).

  python -m experiments.collect --config=configs/gridworld.py:quickstart --workdir=runs/quickstart

The gridworld's stages generate their demonstrations as they train unless `config.data.directory`
names what this made.
"""
