"""The published layer restated in torch from the paper, and a writer of layer bundles with it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F


def segments(kind: str, h: int, experts: int, rank: int) -> list[list[int]] | None:
    """Singular triplets of every expert, by the published name of the start."""
    t = h // experts
    total = experts * rank
    flat = {
        "goat": [i * t + r for i in range(experts) for r in range(rank)],
        "goat_mini": [(i + 1) * t - rank + r for i in range(experts) for r in range(rank)],
        "pissa": list(range(total)),
        "milora": list(range(h - total, h)),
        "pissa_milora": [*range(total // 2), *range(h - total + total // 2, h)],
    }
    start = kind.removesuffix("_scale").removesuffix("_rs")
    if start in ("lora", "mole", "rslora"):
        return None
    return [flat[start][i * rank : (i + 1) * rank] for i in range(experts)]


def published_scale(kind: str, alpha: float, rank: int, in_features: int, eta: float) -> float:
    """The published choice of s, no override by the environment."""
    if "scale" in kind:
        return (3 * in_features * eta / rank) ** 0.5
    if kind == "pissa":
        return 2.0
    return alpha / rank**0.5 if "rs" in kind else alpha / rank


class PublishedLinear(torch.nn.Module):
    """y = x W_res^T + bias + sum_i w_i s_i B_i A_i x, every expert computed for every token."""

    def __init__(self, weight, bias, case: dict, generator: torch.Generator):
        super().__init__()
        experts, rank = case["num_experts"], case["rank"] // case["num_experts"]
        out_features, in_features = weight.shape
        self.case, self.aux = case, torch.zeros(())
        bound = in_features**-0.5

        def uniform(*shape: int) -> torch.Tensor:
            return (torch.rand(shape, generator=generator) * 2 - 1) * bound

        chosen = segments(case["init_type"], min(weight.shape), experts, rank)
        a, b = uniform(experts, rank, in_features), torch.zeros(experts, out_features, rank)
        scale = torch.tensor(case["scaling"])
        residual = weight.clone()
        if chosen is not None:
            u, s, vt = torch.linalg.svd(weight, full_matrices=False)
            index = torch.tensor(chosen)
            root = (s[index] / (scale[0] * case["rho"])).sqrt()
            b = u[:, index].permute(1, 0, 2) * root[:, None, :]
            a = root[:, :, None] * vt[index]
            residual -= case["init_cof"] * scale[0] * torch.einsum("eor,eri->oi", b, a)
        self.residual, self.scale = torch.nn.Buffer(residual), torch.nn.Buffer(scale)
        self.bias = None if bias is None else torch.nn.Buffer(bias)
        self.a, self.b = torch.nn.Parameter(a), torch.nn.Parameter(b.contiguous())
        self.router = torch.nn.Parameter(uniform(experts, in_features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        probs = F.softmax(x @ self.router.T, dim=-1)
        top, index = probs.topk(self.case["top_k"], dim=-1)
        weights = torch.zeros_like(probs).scatter(-1, index, top / top.sum(-1, keepdim=True))
        flat = probs.reshape(-1, probs.shape[-1])
        load = torch.zeros_like(probs).scatter(-1, index, 1.0).reshape(flat.shape).mean(0)
        self.aux = flat.shape[-1] * (load * flat.mean(0)).sum()
        hidden = torch.einsum("...i,eri->...er", x, self.a) * (weights * self.scale)[..., None]
        y = x @ self.residual.T + torch.einsum("...er,eor->...o", hidden, self.b)
        return y if self.bias is None else y + self.bias


def layer_case(name: str, **options) -> dict:
    """A full entry of layers.json, from what differs."""
    case = {
        "name": name, "out_features": 48, "in_features": 40, "tokens": 30, "rank": 8, "alpha": 16,
        "num_experts": 4, "top_k": 2, "init_type": "goat", "rho": 10, "eta": None,
        "adamw": {"lr": 0.01, "steps": 10, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0},
        "aux_coef": 0.001, "bias": True,
    } | options  # fmt: skip
    rank = case["rank"] // case["num_experts"]
    scale = published_scale(
        case["init_type"], case["alpha"], rank, case["in_features"], case["eta"] or 1.0
    )
    return {
        "scaling": [scale] * case["num_experts"],
        "init_cof": 1 / case["num_experts"],
    } | case


def run_layer_case(case: dict, layer: PublishedLinear, x, target) -> dict[str, np.ndarray]:
    """Output, losses, gradients and AdamW steps of a case."""

    def step(inputs):
        y = layer(inputs)
        return y, layer.aux, F.mse_loss(y, target) + case["aux_coef"] * layer.aux

    inputs = x.clone().requires_grad_()
    y, aux, loss = step(inputs)
    loss.backward()
    found = {"y": y, "aux": aux, "loss": loss, "grad_x": inputs.grad, "grad_A": layer.a.grad,
             "grad_B": layer.b.grad, "grad_router": layer.router.grad}  # fmt: skip
    found = {name: value.detach().clone().numpy() for name, value in found.items()}
    settings = dict(case["adamw"])
    steps = settings.pop("steps")
    optimizer = torch.optim.AdamW(layer.parameters(), **settings)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        _, _, loss = step(x)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    found["adamw_losses"] = np.array(losses)
    found["y_final"] = layer(x).detach().numpy()
    return found


def write_layer_bundle(folder: Path, cases: list[dict], seed: int = 0, weight=None) -> Path:
    """Writes layers.json and the arrays of these cases, drawn from a seed (or W0 from `weight`)."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, case in enumerate(cases):
        generator = torch.Generator().manual_seed(1000 * seed + number)

        def normal(*shape: int, generator=generator) -> torch.Tensor:
            return torch.randn(shape, generator=generator)

        m, n, tokens = case["out_features"], case["in_features"], case["tokens"]
        kernel = normal(m, n) * n**-0.5 if weight is None else weight(m, n)
        bias = normal(m) * 0.1 if case["bias"] else None
        layer = PublishedLinear(kernel, bias, case, generator)
        x, target = normal(tokens, n), normal(tokens, m)
        arrays = {
            "W0": kernel, "bias": torch.zeros(0) if bias is None else bias,
            "W_res": layer.residual, "A0": layer.a, "B0": layer.b, "router0": layer.router,
            "x": x, "target": target,
        }  # fmt: skip
        arrays = {key: value.detach().clone().numpy() for key, value in arrays.items()}
        arrays |= run_layer_case(case, layer, x, target)
        np.savez(folder / f"layer_{case['name']}.npz", **arrays)
    (folder / "layers.json").write_text(json.dumps(cases))
    return folder


@pytest.fixture(scope="session")
def make_layer_case():
    """`layer_case`."""
    return layer_case


@pytest.fixture(scope="session")
def write_layers():
    """`write_layer_bundle`."""
    return write_layer_bundle


@pytest.fixture(scope="session")
def published_linear():
    """`PublishedLinear`."""
    return PublishedLinear


@pytest.fixture(scope="session")
def make_scale():
    """`published_scale`."""
    return published_scale
