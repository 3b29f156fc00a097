"""How results are scored: protocols, metrics, and what papers report."""
