"""The DINO ViT in PyTorch, with the parameter names of the official checkpoints.

Written to be fast, as a PyTorch user would have it today: fused attention, and nothing computed
in the last block beyond the keys that are read. `torch.autocast` gives the bfloat16 version.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(*qkv.unbind(0))
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))

    def keys(self, x: Tensor) -> Tensor:
        """(B, T, width): the key third of the projection, heads innermost.

        The published extractor lays channels out so; only parameters of a head notice.
        """
        width = x.shape[-1]
        third = slice(width, 2 * width)
        keys = functional.linear(x, self.qkv.weight[third], self.qkv.bias[third])
        return keys.unflatten(-1, (self.heads, -1)).transpose(-1, -2).flatten(-2)


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    def __init__(self, patch: int, width: int):
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch, stride=patch)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.proj(pixels).flatten(2).transpose(1, 2)


class VisionTransformer(nn.Module):
    """DINO's ViT; the defaults are ViT-S/8 on a 28×28 grid."""

    def __init__(self, patch=8, width=384, depth=12, heads=6, native_grid=28):
        super().__init__()
        self.patch, self.native_grid = patch, native_grid
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, native_grid**2 + 1, width))
        self.patch_embed = PatchEmbed(patch, width)
        self.blocks = nn.ModuleList([Block(width, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def positions(self, rows: int, columns: int) -> Tensor:
        """Position embedding (1, 1 + rows·columns, width), bicubic unless it is the native grid."""
        native = self.native_grid
        if rows == columns == native:
            return self.pos_embed
        first, rest = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        rest = functional.interpolate(
            rest.view(1, native, native, -1).permute(0, 3, 1, 2),
            scale_factor=((rows + 0.1) / native, (columns + 0.1) / native),
            mode="bicubic",
            recompute_scale_factor=False,
        )
        return torch.cat([first, rest.flatten(2).transpose(1, 2)], dim=1)

    def keys(self, pixels: Tensor) -> Tensor:
        """Keys of the last block (B, N, width) float32 of normalised pixels (B, 3, H, W)."""
        rows, columns = pixels.shape[-2] // self.patch, pixels.shape[-1] // self.patch
        x = self.patch_embed(pixels)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        x = x + self.positions(rows, columns)
        for block in self.blocks[:-1]:
            x = block(x)
        last = self.blocks[-1]
        return last.attn.keys(last.norm1(x)[:, 1:]).float()


def load(state: dict[str, np.ndarray], **shape) -> VisionTransformer:
    """The model with these weights, ready for inference."""
    model = VisionTransformer(**shape)
    model.load_state_dict({name: torch.tensor(np.asarray(value)) for name, value in state.items()})
    return model.eval().requires_grad_(False)


def normalise(pixels: np.ndarray) -> Tensor:
    """(B, H, W, 3) uint8 → (B, 3, H, W) float32, as the backbone expects it."""
    scaled = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float() / 255
    return (scaled - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def features(model: VisionTransformer, pixels: np.ndarray, *, bfloat16: bool = False) -> Tensor:
    """Keys (B, N, width) float32 of pixels (B, H, W, 3) uint8."""
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        return model.keys(normalise(pixels))
