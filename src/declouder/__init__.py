"""declouder: clouds removed from high-resolution optical satellite and aerial images.

    from declouder import CloudRemovalPipeline, remove_clouds

The names are loaded on first use, so that `import declouder` stays light (no torch).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from declouder.version import __version__

if TYPE_CHECKING:
    from declouder.pipeline import CloudRemovalPipeline, remove_clouds

__all__ = ["CloudRemovalPipeline", "__version__", "remove_clouds"]


def __getattr__(name: str) -> Any:
    if name in {"CloudRemovalPipeline", "remove_clouds"}:
        from declouder import pipeline

        return getattr(pipeline, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
