"""The graph of an image and the loop that clusters it: layers, losses, optimiser, baselines."""
