"""Wall-clock measurements. `python -m benchmarks` lists and runs them."""
