"""Exchange with other libraries: graphs with jraph, parameters with PyTorch."""
