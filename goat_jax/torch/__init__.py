"""Routed adapters in PyTorch: a tuner for PEFT, which importing this package registers.

After it, ``PeftModel.from_pretrained(base, folder)`` opens the folders that ``goat-jax export --to
peft`` writes of runs with routed experts, and ``get_peft_model(base, GoatConfig(...))`` makes new
adapters.

>>> import torch, peft
>>> from goat_jax.torch import GoatConfig, aux_loss
>>> base = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 2))
>>> model = peft.get_peft_model(base, GoatConfig(r=1, num_experts=4, target_modules=["0"]))
>>> model(torch.ones(3, 8)).shape, aux_loss(model).shape
(torch.Size([3, 2]), torch.Size([]))
"""

# ruff: noqa: E402

from goat_jax.extras import import_extra

for _package in ("torch", "peft"):
    import_extra(_package, "goat_jax.torch")

from goat_jax.torch.config import GoatConfig
from goat_jax.torch.experts import Experts
from goat_jax.torch.tuner import GoatLinear, GoatModel, aux_loss, register

__all__ = ["Experts", "GoatConfig", "GoatLinear", "GoatModel", "aux_loss"]

register()
