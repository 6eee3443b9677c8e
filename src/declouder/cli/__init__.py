"""The `declouder` command: the only package that parses arguments or prints. One module a command."""

from declouder.cli import evaluate, models, remove, train
from declouder.cli.app import app, main, reporting_errors

__all__ = ["app", "evaluate", "main", "models", "remove", "reporting_errors", "train"]
