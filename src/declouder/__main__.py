"""`python -m declouder`."""

from declouder.cli import main

main()
