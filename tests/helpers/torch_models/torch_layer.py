"""The GOAT layer and its relatives once more, in PyTorch, from the paper's equations alone.

A second opinion for the tests: torch layout (weights [m, n], y = x W^T), one loop over experts,
gradients by torch's autograd, training by torch's AdamW. It shares nothing with the package.
"""

import dataclasses
import math

import torch
import torch.nn.functional as F

RHO = 10.0


@dataclasses.dataclass
class Start:
    """A layer before training: frozen weight [m, n], a [E, d, n], b [E, m, d], scale per expert."""

    weight: torch.Tensor
    a: torch.Tensor
    b: torch.Tensor
    scale: list[float]


def scale_of(rule, n, d, alpha=16.0, eta=1.0):
    """s for one expert: LoRA, rsLoRA, or theorem 3.5."""
    return {
        "lora": alpha / d,
        "rslora": alpha / math.sqrt(d),
        "theory": math.sqrt(3 * n * eta / d),
    }[rule]


def segment_starts(choice, h, experts, d):
    """k_j of every expert j (section 3 and the ablation of the paper)."""
    return {
        "O": [j * (h // experts) for j in range(experts)],
        "P": [j * d for j in range(experts)],
        "M": [h - (j + 1) * d for j in range(experts)],
    }[choice]


def svd_start(weight, experts, d, choice, s, *, rho=RHO, by_spectrum=False, routed=True):
    """Equations 13 and 19, theorem 3.4, and appendix E where `by_spectrum`; in float64."""
    wide = weight.double()
    u, sigma, vt = torch.linalg.svd(wide, full_matrices=False)
    a, b, mass = [], [], []
    for k in segment_starts(choice, len(sigma), experts, d):
        root = (sigma[k : k + d] / (s * rho)).sqrt()
        b.append(u[:, k : k + d] * root)
        a.append(root[:, None] * vt[k : k + d])
        mass.append(sigma[k : k + d].sum().item())
    scale = [s * math.sqrt(mass[0] / m) if by_spectrum else s for m in mass]
    expected = sum(s_i * b_i @ a_i for s_i, a_i, b_i in zip(scale, a, b, strict=True))
    residual = wide - expected / (experts if routed else 1)
    return Start(residual.to(weight.dtype), torch.stack(a).float(), torch.stack(b).float(), scale)


class Layer(torch.nn.Module):
    """Frozen weight and bias, trained experts, and a trained router unless it is None.

    The experts compute in x's dtype whatever they are stored in; the router in float32 at least.
    """

    def __init__(self, weight, bias, a, b, router, scale, top_k):
        super().__init__()
        self.weight, self.bias, self.scale, self.top_k = weight, bias, list(scale), top_k
        self.a, self.b = torch.nn.Parameter(a.clone()), torch.nn.Parameter(b.clone())
        self.router = None if router is None else torch.nn.Parameter(router.clone())

    def gates(self, x):
        """w [T, E], p [T, E], and which experts are chosen [T, E]."""
        if self.router is None:
            ones = torch.ones(len(x), len(self.a), dtype=self.a.dtype)
            return ones, ones, ones > 0
        z = F.linear(x.to(self.router.dtype), self.router)
        best = z.topk(self.top_k, dim=-1).indices
        chosen = torch.zeros_like(z, dtype=torch.bool).scatter(1, best, True)
        powers = torch.where(chosen, (z - z.max(-1, keepdim=True).values).exp(), 0.0)
        return powers / powers.sum(-1, keepdim=True), z.softmax(-1), chosen

    def forward(self, x):
        """y [T, m] and the gates."""
        w, p, chosen = self.gates(x)
        y = F.linear(x, self.weight.to(x.dtype))
        if self.bias is not None:
            y = y + self.bias.to(x.dtype)
        for i, s in enumerate(self.scale):
            out = F.linear(F.linear(x, self.a[i].to(x.dtype)), self.b[i].to(x.dtype))
            y = y + (w[:, i : i + 1] * s).to(x.dtype) * out
        return y, p, chosen

    def loss(self, x, target, coef, published=False):
        """mean((y - t)^2) + coef * balance, in float32 at least; also y and the balance loss."""
        y, p, chosen = self(x)
        aux = torch.zeros((), dtype=self.a.dtype)
        if self.router is not None:
            count = chosen.to(p.dtype).sum(0)
            experts, tokens = p.shape[1], len(x)
            f = experts / tokens * count if published else experts / (self.top_k * tokens) * count
            aux = (f * p.mean(0)).sum()
        return ((y.to(target.dtype) - target) ** 2).mean() + coef * aux, y, aux

    def margin(self, x):
        """Returns the smallest gap between the k-th best logit and the next: zero is a tie."""
        if self.router is None or self.top_k == len(self.a):
            return math.inf
        z = F.linear(x.to(self.router.dtype), self.router).sort(-1, descending=True).values
        return (z[:, self.top_k - 1] - z[:, self.top_k]).min().item()


def train(layer, x, target, coef, published, *, steps, lr, weight_decay):
    """AdamW on one batch: losses before every step, output after the last, smallest margin seen."""
    optimizer = torch.optim.AdamW(
        layer.parameters(), lr=lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=weight_decay
    )
    losses, margins = [], [layer.margin(x)]
    for _ in range(steps):
        optimizer.zero_grad()
        loss, _, _ = layer.loss(x, target, coef, published)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        margins.append(layer.margin(x))
    return losses, layer(x)[0].detach(), min(margins)
