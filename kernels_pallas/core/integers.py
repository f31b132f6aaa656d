"""Integer arithmetic on sizes."""


def cdiv(a: int, b: int) -> int:
    """Returns a / b rounded up."""
    return -(-a // b)


def next_power_of_two(n: int) -> int:
    """Returns the smallest power of two >= n (blocks in kernels have such sizes)."""
    return 1 << (n - 1).bit_length()
