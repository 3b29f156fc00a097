"""The best a PyTorch user could do: the same heads dense, batched and with constants taken out.

Every image of the batch has parameters of its own, so all of them are optimised at once by
batched products; ÂX (or L̂X) is computed before the first epoch; degrees are vectors; the products
of ARMA's root terms are one; the symmetric W is multiplied once an epoch, not twice; AdamW is the
fused one. `compiled=True` hands the forward pass and the loss to `torch.compile`.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.reference.pyg_heads import HEADS, Head

_ACTIVATIONS = {
    "relu": functional.relu,
    "elu": functional.elu,
    "selu": functional.selu,
    "silu": functional.silu,
    "gelu": functional.gelu,
}
_STACKS, _ARMA_LAYERS = 2, 4
Parameters = dict[str, Tensor]


def gcn_propagation(adjacency: Tensor) -> Tensor:
    """Â = D^−½ W D^−½ (B, N, N) of the positive part, self-loops only where there are none."""
    edges = adjacency.clamp(min=0)
    diagonal = torch.diagonal(edges, dim1=-2, dim2=-1)
    edges = edges + torch.diag_embed((diagonal == 0).to(edges.dtype))
    scale = edges.sum(dim=-1).rsqrt()
    return scale[..., :, None] * edges * scale[..., None, :]


def arma_propagation(adjacency: Tensor) -> Tensor:
    """L̂ = D^−½ W D^−½ (B, N, N) of the positive part, without self-loops added."""
    edges = adjacency.clamp(min=0)
    degree = edges.sum(dim=-1)
    scale = torch.where(degree > 0, degree.rsqrt(), torch.zeros_like(degree))
    return scale[..., :, None] * edges * scale[..., None, :]


def gat_edges(adjacency: Tensor) -> tuple[Tensor, Tensor]:
    """Edge features (B, N, N), and 0 where there is an edge or a self-loop, else −inf."""
    loops = torch.eye(adjacency.shape[-1], dtype=torch.bool, device=adjacency.device)
    neighbours = (adjacency > 0) & ~loops
    weights = torch.where(neighbours, adjacency, 0.0)
    mean = weights.sum(dim=-1) / neighbours.sum(dim=-1).clamp(min=1)
    barrier = torch.where(neighbours | loops, 0.0, -torch.inf)
    return weights + torch.diag_embed(mean), barrier


def prepare(head: Head, features: Tensor, adjacency: Tensor) -> dict[str, Tensor]:
    """What does not change while a head is optimised."""
    constants = {"adjacency": adjacency, "degree": adjacency.sum(dim=-1)}
    if head.layer == "gat":
        edges, barrier = gat_edges(adjacency)
        return {**constants, "nodes": features, "edges": edges, "barrier": barrier}
    propagation = (arma_propagation if head.layer == "arma" else gcn_propagation)(adjacency)
    constants |= {"propagation": propagation, "propagated": propagation @ features}
    return constants | ({"nodes": features} if head.layer == "arma" else {})


def fuse(head: Head, states: Sequence[Mapping[str, np.ndarray]], device: str = "cpu") -> Parameters:
    """Stacks state dicts (published names) over images, in the layouts of the batched products."""
    stacked = {
        name: torch.tensor(np.stack([np.asarray(state[name]) for state in states]), device=device)
        for name in states[0]
    }
    fused = {}
    for name, value in stacked.items():
        if name.endswith("root_weight"):  # (B, T, K, D, F) → (B, D, T·K·F)
            value = value.permute(0, 3, 1, 2, 4).flatten(2)
        elif name.endswith("init_weight"):  # (B, K, D, F) → (B, D, K·F)
            value = value.transpose(1, 2).flatten(2)
        elif value.ndim == 3 and not name.startswith("convs.bias"):  # (out, in) → (in, out)
            value = value.transpose(1, 2)
        fused[name] = value.contiguous().requires_grad_(True)
    if head.layer == "gat" and not head.edge_features:
        fused = {name: value for name, value in fused.items() if "edge" not in name}
    return fused


class _SymmetricProduct(torch.autograd.Function):
    """Σ_ij S_ik W_ij S_jk summed over k, (B,), for a symmetric W: one product forward and back."""

    @staticmethod
    def forward(ctx, adjacency, assignments):
        product = adjacency @ assignments
        ctx.save_for_backward(product)
        return (assignments * product).sum(dim=(-2, -1))

    @staticmethod
    def backward(ctx, gradient):
        (product,) = ctx.saved_tensors
        return None, 2 * gradient[:, None, None] * product


def graph_loss(head: Head, constants: Mapping[str, Tensor], assignments: Tensor) -> Tensor:
    """(B,) losses of assignments (B, N, K), as the published code has them."""
    within = _SymmetricProduct.apply(constants["adjacency"], assignments)
    if head.loss == "cc":
        return -within
    degree, clusters = constants["degree"], assignments.shape[-1]
    if head.loss == "ncut":
        volume = (degree[..., None] * assignments.square()).sum(dim=(-2, -1))
        gram = assignments.transpose(-2, -1) @ assignments
        gram = gram / torch.linalg.vector_norm(gram, dim=(-2, -1), keepdim=True)
        balance = gram - torch.eye(clusters, device=gram.device) / clusters**0.5
        return -within / volume + torch.linalg.vector_norm(balance, dim=(-2, -1))
    total = degree.sum(dim=-1)
    pooled = (degree[..., None] * assignments).sum(dim=-2).square().sum(dim=-1)
    spread = torch.linalg.vector_norm(assignments.sum(dim=head.collapse_over - 2), dim=-1)
    collapse = clusters**0.25 / assignments.shape[-2] * spread - 1
    return -(within - pooled / (2 * total)) / (2 * total) + collapse


def _linear(parameters: Parameters, name: str, inputs: Tensor) -> Tensor:
    bias = parameters[f"{name}.bias"][:, None]
    return torch.baddbmm(bias, inputs, parameters[f"{name}.weight"])


def _gat(parameters: Parameters, name: str, inputs: Tensor, constants, rate: float) -> Tensor:
    hidden = inputs @ parameters[f"{name}.lin.weight"]
    source = (hidden * parameters[f"{name}.att_src"][:, 0]).sum(dim=-1)
    target = (hidden * parameters[f"{name}.att_dst"][:, 0]).sum(dim=-1)
    logits = target[:, :, None] + source[:, None, :]
    if f"{name}.att_edge" in parameters:
        edge = parameters[f"{name}.lin_edge.weight"] * parameters[f"{name}.att_edge"][:, 0]
        logits = logits + edge.sum(dim=-1, keepdim=True) * constants["edges"]
    logits = functional.leaky_relu(logits, 0.2) + constants["barrier"]
    attention = functional.dropout(logits.softmax(dim=-1), rate)
    return attention @ hidden + parameters[f"{name}.bias"][:, None]


def _arma(parameters: Parameters, constants, activation, rate: float) -> Tensor:
    nodes, root = constants["nodes"], parameters["convs.root_weight"]
    if rate:
        # The published dropout draws a new mask for every layer, so there are four products.
        parts = root.chunk(_ARMA_LAYERS, dim=-1)
        roots = [functional.dropout(nodes, rate) @ part for part in parts]
    else:
        roots = list((nodes @ root).chunk(_ARMA_LAYERS, dim=-1))
    out = constants["propagated"] @ parameters["convs.init_weight"]
    width = out.shape[-1] // _STACKS
    for depth in range(_ARMA_LAYERS):
        if depth:
            weight = parameters["convs.weight"][:, depth - 1]
            stacks = out.unflatten(-1, (_STACKS, width)).transpose(1, 2) @ weight
            out = constants["propagation"] @ stacks.transpose(1, 2).flatten(2)
        bias = parameters["convs.bias"][:, depth].flatten(1)[:, None]
        out = activation(out + roots[depth] + bias)
    return out.unflatten(-1, (_STACKS, width)).mean(dim=2)


def assign(
    head: Head, parameters: Parameters, constants: Mapping[str, Tensor], dropout: float | None
) -> Tensor:
    """Assignments (B, N, K) of a batch of images, each with its own parameters."""
    rate = head.dropout if dropout is None else dropout
    layer_rate = head.layer_dropout if dropout is None else dropout
    activation, inner = _ACTIVATIONS[head.activation], _ACTIVATIONS[head.mlp_activation]
    total = None
    for number, widths in enumerate(head.branches, start=1):
        suffix = "" if number == 1 else str(number)
        out = constants.get("nodes")
        if head.layer == "arma":
            out = _arma(parameters, constants, activation, layer_rate)
        for depth in range(len(widths) if head.layer != "arma" else 0):
            name = f"convs{suffix}.convs.{depth}"
            if depth:
                out = (activation if head.layer == "gat" else functional.relu)(out)
                out = functional.dropout(out, layer_rate)
            if head.layer == "gat":
                out = _gat(parameters, name, out, constants, layer_rate)
            else:
                weight, bias = parameters[f"{name}.lin.weight"], parameters[f"{name}.bias"][:, None]
                if depth == 0:
                    out = torch.baddbmm(bias, constants["propagated"], weight)
                else:
                    out = torch.baddbmm(bias, constants["propagation"], out @ weight)
        if number > 1:
            out = activation(_linear(parameters, f"mlp{suffix}.0", out))
            out = functional.dropout(out, rate)
        total = out if total is None else total + out
    hidden = functional.dropout(inner(_linear(parameters, "mlp.0", activation(total))), rate)
    return _linear(parameters, "mlp.3", hidden).softmax(dim=-1)


@dataclasses.dataclass(frozen=True)
class Run:
    """losses (B, epochs) float32, each before its update; labels (B, N) of the last pass."""

    losses: np.ndarray
    labels: np.ndarray


def _loss(head, parameters, constants, dropout):
    assignments = assign(head, parameters, constants, dropout)
    return graph_loss(head, constants, assignments), assignments


@functools.cache
def _compiled_loss():
    return torch.compile(_loss, dynamic=False)


def optimise(
    head: Head,
    parameters: Parameters,
    constants: Mapping[str, Tensor],
    *,
    epochs: int,
    learning_rate: float,
    dropout: float | None = None,
    compiled: bool = False,
) -> tuple[list[Tensor], Tensor]:
    """`epochs` steps of AdamW on every image of the batch at once; `parameters` are changed.

    Returns:
        Losses (B,), one a step, and the assignments of the last training pass.
    """
    loss_of = _compiled_loss() if compiled else _loss
    leaves = list(parameters.values())
    fused = torch.optim.AdamW(leaves, lr=learning_rate, weight_decay=0.01, fused=True)
    losses, assignments = [], None
    for _ in range(epochs):
        fused.zero_grad(set_to_none=True)
        loss, assignments = loss_of(head, parameters, constants, dropout)
        loss.sum().backward()
        fused.step()
        losses.append(loss.detach())
    return losses, assignments.detach()


def run(
    features: np.ndarray,
    adjacency: np.ndarray,
    head: Head | str,
    *,
    states: Sequence[Mapping[str, np.ndarray]],
    epochs: int | None = None,
    learning_rate: float | None = None,
    dropout: float | None = None,
    compiled: bool = False,
    seed: int = 0,
) -> Run:
    """Segments features (B, N, D), with W (B, N, N), from one state dict an image."""
    head = HEADS[head] if isinstance(head, str) else head
    torch.manual_seed(seed)
    constants = prepare(head, torch.from_numpy(features), torch.from_numpy(adjacency))
    losses, assignments = optimise(
        head,
        fuse(head, states),
        constants,
        epochs=head.epochs if epochs is None else epochs,
        learning_rate=head.learning_rate if learning_rate is None else learning_rate,
        dropout=dropout,
        compiled=compiled,
    )
    return Run(torch.stack(losses, dim=1).numpy(), assignments.argmax(dim=-1).numpy())
