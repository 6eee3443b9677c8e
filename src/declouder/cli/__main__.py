"""`python -m declouder.cli`."""

from declouder.cli import main

main()
