"""The `declouder` command: the only package that parses arguments or prints.

A module for each command, or for a few that belong together; what `remove` does besides is in jobs and running, and
what all share in app, options, loading, process, logs and bars.
"""

from declouder.cli import ablate, data, evaluate, models, remove, report, train
from declouder.cli.app import app, main, reporting_errors

__all__ = ["ablate", "app", "data", "evaluate", "main", "models", "remove", "report", "reporting_errors", "train"]
