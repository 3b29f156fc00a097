"""The published per-image loops, written anew with PyTorch Geometric.

What the public code of DeepCut, UnSegGNet, UnSeGArmaNet and UnSegMedGAT does for one image, with
the same operations in the same order of magnitude: the dense affinity is turned into an edge list,
messages are passed along it one by one, one model object is set back to one state dict before
every image, dropout is on, and the labels are those of the last training pass.

Parameter names are those of the published `GNNpool`s, so that state dicts go both ways.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
import torch
import torch_geometric.nn as geometric
from torch import Tensor, nn
from torch.nn import functional

_ACTIVATIONS = {"relu": nn.ReLU, "elu": nn.ELU, "selu": nn.SELU, "silu": nn.SiLU, "gelu": nn.GELU}


@dataclasses.dataclass(frozen=True)
class Head:
    """The settings of one published head.

    Attributes:
        layer: "gcn", "arma" or "gat".
        branches: widths of the graph layers of each branch; every branch but the first is
            projected to the width of the first, and they are summed.
        activation: after the graph part, and inside ARMA and between GAT layers.
        mlp_activation: inside the multilayer perceptron.
        loss: "ncut", "cc" or "modularity".
        collapse_over: axis that the collapse term of the modularity sums over: 0 is nodes, 1 is
            clusters (a constant).
        affinity: "ncut", "cc", "dmon" or "cosine".
        tau, alpha: threshold, and divisor of the offset of "cc".
        clusters, epochs, learning_rate: defaults of the published scripts.
        dropout: after the hidden linear layer and the projections.
        layer_dropout: inside the graph layers.
        edge_features: whether GAT sees the edge weights. The published code passes them in the
            place of an argument that PyTorch Geometric's GAT ignores, so it does not.
    """

    layer: str = "gcn"
    branches: tuple[tuple[int, ...], ...] = ((64,),)
    activation: str = "elu"
    mlp_activation: str = "elu"
    loss: str = "ncut"
    collapse_over: int = 1
    affinity: str = "ncut"
    tau: float = 0.0
    alpha: float = 3.0
    clusters: int = 2
    epochs: int = 10
    learning_rate: float = 1e-3
    dropout: float = 0.25
    layer_dropout: float = 0.0
    edge_features: bool = False


def _unseg(layer: str, loss: str, **settings) -> Head:
    return Head(
        layer=layer,
        activation="silu",
        mlp_activation="silu",
        loss=loss,
        affinity="dmon" if loss == "modularity" else "ncut",
        tau=0.5 if loss == "modularity" else 0.0,
        epochs=20,
        layer_dropout=0.4 if layer == "arma" else 0.0,
        **settings,
    )


_MEDGAT = Head(
    layer="gat",
    branches=((64, 64), (128, 128)),
    activation="silu",
    mlp_activation="silu",
    loss="modularity",
    collapse_over=0,
    affinity="cosine",
    tau=0.5,
    epochs=55,
    learning_rate=1e-4,
    dropout=0.2,
    layer_dropout=0.2,
)

HEADS: Mapping[str, Head] = {
    "deepcut": Head(),
    "deepcut-cc": Head(loss="cc", affinity="cc", clusters=10),
    "unseggnet": _unseg("gcn", "modularity"),
    "unseggnet-ncut": _unseg("gcn", "ncut"),
    "unsegarmanet": _unseg("arma", "modularity"),
    "unsegarmanet-ncut": _unseg("arma", "ncut"),
    "unsegmedgat": _MEDGAT,
    "unsegmedgat-isic": dataclasses.replace(_MEDGAT, branches=((32,), (64,), (128,)), tau=0.35),
}


class GNNpool(nn.Module):
    """Graph layers, a two-layer perceptron and a softmax over clusters.

    The names of its parts are those of the published modules: `convs`, `convs2`, `convs3` for
    the branches, `mlp2`, `mlp3` for their projections, `mlp` for the perceptron.
    """

    def __init__(self, head: Head, width: int, clusters: int, dropout: float | None = None):
        super().__init__()
        self.head, self.clusters = head, clusters
        rate = head.dropout if dropout is None else dropout
        layer_rate = head.layer_dropout if dropout is None else dropout
        first = head.branches[0][-1]
        act = _ACTIVATIONS[head.activation]
        for number, widths in enumerate(head.branches, start=1):
            suffix = "" if number == 1 else str(number)
            setattr(self, f"convs{suffix}", self._graph_layers(width, widths, layer_rate))
            if number > 1:
                project = nn.Sequential(nn.Linear(widths[-1], first), act(), nn.Dropout(rate))
                setattr(self, f"mlp{suffix}", project)
        self.act = act()
        self.mlp = nn.Sequential(
            nn.Linear(first, 32),
            _ACTIVATIONS[head.mlp_activation](),
            nn.Dropout(rate),
            nn.Linear(32, clusters),
        )

    def _graph_layers(self, width: int, widths: tuple[int, ...], rate: float) -> nn.Module:
        head = self.head
        if head.layer == "gcn":
            return geometric.GCN(width, widths[0], len(widths), act="relu", dropout=rate)
        if head.layer == "gat":
            return geometric.GAT(
                width, widths[0], len(widths), act=head.activation, dropout=rate, edge_dim=1
            )
        return geometric.ARMAConv(
            width,
            widths[0],
            num_stacks=2,
            num_layers=4,
            shared_weights=False,
            act=_ACTIVATIONS[head.activation](),
            dropout=rate,
        )

    def forward(self, nodes: Tensor, edge_index: Tensor, edge_weight: Tensor) -> Tensor:
        """Assignments S (N, K) of nodes (N, D), rows summing to 1."""
        total = None
        for number in range(1, len(self.head.branches) + 1):
            suffix = "" if number == 1 else str(number)
            layers = getattr(self, f"convs{suffix}")
            if self.head.layer == "gat" and self.head.edge_features:
                out = layers(nodes, edge_index, edge_attr=edge_weight)
            else:
                out = layers(nodes, edge_index, edge_weight)
            if number > 1:
                out = getattr(self, f"mlp{suffix}")(out)
            total = out if total is None else total + out
        return functional.softmax(self.mlp(self.act(total)), dim=-1)


def affinity(features: np.ndarray, head: Head) -> np.ndarray:
    """The dense affinity W (N, N) float32 of features (N, D)."""
    if head.affinity in ("dmon", "cosine"):
        unit = features / np.linalg.norm(features, axis=1, keepdims=True)
        cosine = unit @ unit.T
        if head.affinity == "dmon":
            return (cosine >= head.tau).astype(np.float32)
        kept = cosine * (cosine >= head.tau)
        return (kept / kept.max()).astype(np.float32)
    product = features @ features.T
    if head.affinity == "cc":
        return product - product.max() / head.alpha
    kept = product * (product > head.tau)
    return kept / kept.max()


def edges(adjacency: np.ndarray) -> tuple[Tensor, Tensor]:
    """The edge list (2, E) of the positive entries of W, and their weights (E,)."""
    index = np.array(np.nonzero(adjacency > 0))
    weight = adjacency[index[0], index[1]]
    return torch.from_numpy(index), torch.from_numpy(weight)


def graph_loss(head: Head, adjacency: Tensor, assignments: Tensor) -> Tensor:
    """The published loss of assignments (N, K), with its dense N×N products."""
    clusters = assignments.shape[1]
    if head.loss == "cc":
        return -torch.sum(adjacency * (assignments @ assignments.t()))
    identity = torch.eye(clusters)
    if head.loss == "ncut":
        cut = torch.trace((adjacency @ assignments).t() @ assignments)
        degree = torch.diag(adjacency.sum(dim=-1))
        volume = torch.trace((degree @ assignments).t() @ assignments)
        gram = assignments.t() @ assignments
        balance = torch.norm(gram / torch.norm(gram) - identity / torch.norm(identity))
        return -cut / volume + balance
    degree, total = adjacency.sum(dim=1), adjacency.sum()
    modularity = adjacency - torch.outer(degree, degree) / (2 * total)
    trace = torch.trace(assignments.t() @ modularity @ assignments)
    spread = torch.norm(assignments.sum(dim=head.collapse_over))
    collapse = torch.sqrt(torch.norm(identity)) / assignments.shape[0] * spread - 1
    return -trace / (2 * total) + collapse


@dataclasses.dataclass(frozen=True)
class Run:
    """What one image's loop gives out; arrays on the host.

    Attributes:
        losses: (epochs,) float32, each before its update.
        labels: (N,) int64 of the last training pass, which precedes the last update.
        first, last: (N, K) assignments of the first and of the last training pass.
        gradients: by parameter name, of the first step; parameters that the loss does not reach
            have none.
        final: parameters after the last update.
    """

    losses: np.ndarray
    labels: np.ndarray
    first: np.ndarray
    last: np.ndarray
    gradients: dict[str, np.ndarray]
    final: dict[str, np.ndarray]


def initial_state(head: Head, width: int, clusters: int | None = None, seed: int = 0):
    """A fresh state dict, {name: float32 array}, of the head over features of that width."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = GNNpool(head, width, clusters or head.clusters)
    return {name: value.numpy().copy() for name, value in model.state_dict().items()}


def build(head: Head, state: Mapping[str, np.ndarray], dropout: float | None = None) -> GNNpool:
    """The model that a state dict fits: widths and number of clusters are read from its shapes."""
    clusters = len(state["mlp.3.bias"])
    if head.layer == "arma":
        width = state["convs.init_weight"].shape[1]
    else:
        width = state["convs.convs.0.lin.weight"].shape[1]
    model = GNNpool(head, width, clusters, dropout)
    model.train()
    return model


def optimise(
    model: GNNpool,
    state: Mapping[str, Tensor],
    nodes: Tensor,
    adjacency: Tensor,
    edge_index: Tensor,
    edge_weight: Tensor,
    *,
    epochs: int,
    learning_rate: float,
    after_first=None,
) -> tuple[list[Tensor], Tensor, Tensor]:
    """One image: the model set back to `state`, then `epochs` steps of AdamW (decay 0.01).

    Returns:
        Losses one a step, and the assignments of the first and of the last training pass.
    """
    model.load_state_dict(state)
    optimiser = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    losses, first, last = [], None, None
    for epoch in range(epochs):
        optimiser.zero_grad()
        last = model(nodes, edge_index, edge_weight)
        loss = graph_loss(model.head, adjacency, last)
        loss.backward()
        if epoch == 0:
            first = last
            if after_first is not None:
                after_first(model)
        optimiser.step()
        losses.append(loss.detach())
    return losses, first.detach(), last.detach()


def run(
    features: np.ndarray,
    head: Head | str,
    *,
    state: Mapping[str, np.ndarray],
    adjacency: np.ndarray | None = None,
    epochs: int | None = None,
    learning_rate: float | None = None,
    dropout: float | None = None,
    seed: int = 0,
) -> Run:
    """Segments one image's features (N, D) float32 from the given initial parameters.

    Args:
        features: (N, D) float32.
        head: the settings, or a name of `HEADS`.
        state: initial parameters by published name.
        adjacency: W (N, N) to use instead of the head's own.
        epochs, learning_rate: instead of the head's own.
        dropout: one rate for every dropout of the head; None keeps the published ones.
        seed: of the dropout.
    """
    head = HEADS[head] if isinstance(head, str) else head
    weights = affinity(features, head) if adjacency is None else adjacency
    weights = np.ascontiguousarray(weights, dtype=np.float32)
    edge_index, edge_weight = edges(weights)
    model = build(head, state, dropout)
    gradients: dict[str, np.ndarray] = {}

    def keep(model: GNNpool) -> None:
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                gradients[name] = parameter.grad.numpy().copy()

    torch.manual_seed(seed)
    losses, first, last = optimise(
        model,
        {name: torch.tensor(np.asarray(value)) for name, value in state.items()},
        torch.from_numpy(np.ascontiguousarray(features, dtype=np.float32)),
        torch.from_numpy(weights),
        edge_index,
        edge_weight,
        epochs=head.epochs if epochs is None else epochs,
        learning_rate=head.learning_rate if learning_rate is None else learning_rate,
        after_first=keep,
    )
    return Run(
        losses=torch.stack(losses).numpy(),
        labels=last.argmax(dim=-1).numpy(),
        first=first.numpy(),
        last=last.numpy(),
        gradients=gradients,
        final={name: value.numpy().copy() for name, value in model.state_dict().items()},
    )
