"""What is wrong with a weight file."""


class WeightsError(ValueError):
    """A weight file cannot be read, or is not that of the model asked for."""
