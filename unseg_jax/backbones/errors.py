"""The error of this room."""


class WeightsError(ValueError):
    """Weights that cannot be had, read, or fitted to a backbone."""
