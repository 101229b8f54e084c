"""`python -m lrft`."""

from lrft.cli import main

main()
