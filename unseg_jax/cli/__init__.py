"""The command line, `unseg-jax`."""
