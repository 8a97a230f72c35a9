"""Leaves out of the doctests the modules that need a package which is not there."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("lm_eval") else ["goat_jax/evaluation/lm_eval.py"]
