"""Our own PyTorch writings of what unseg_jax is measured against.

`pyg_heads` follows the published per-image loops step by step; `torch_dense` is the fastest
writing of the same mathematics that we could find in PyTorch; `torch_vit` is the ViT; `published`
runs an unmodified checkout of DeepCut. All need the `reference` extra, and none is imported by
unseg_jax.
"""
