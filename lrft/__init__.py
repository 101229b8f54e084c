"""lrft: low-rank fine-tuning of language models, driven by recipes."""

__version__ = "0.1.0"
