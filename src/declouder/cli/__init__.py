"""The `declouder` command: the only package that parses arguments or prints. One module a command."""

from declouder.cli import data, evaluate, models, remove, report, train
from declouder.cli.app import app, main, reporting_errors

__all__ = ["app", "data", "evaluate", "main", "models", "remove", "report", "reporting_errors", "train"]
