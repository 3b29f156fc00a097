"""What stops a run, in one sentence."""


class BenchError(Exception):
    """A run that cannot start or go on; the message says why and what to do."""
