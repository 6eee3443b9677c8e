"""The version of the package: on its own, so that naming it imports nothing else."""

from __future__ import annotations

__all__ = ["__version__"]
__version__ = "0.1.0"
