"""`Amortized`: adapters that hold a distribution over the values that tasks have, and not one value."""

from __future__ import annotations


class Amortized:
    """What an adapter is besides, whose A (r, in), B (out, r) and buffers C, D alike give a mean and a log-variance.

    Of an input x what the layer adds has mean `scaling` (x A^T) B^T, and log-variance `log_variance` plus
    `scaling` (x C^T) D^T. The trait is `amortized`.
    """

    log_variance: float
