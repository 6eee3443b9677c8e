"""declouder: clouds removed from high-resolution optical satellite and aerial images.

    from declouder import CloudRemovalPipeline, remove_clouds

    clear = remove_clouds(cloudy)                             # (H, W, C) floats in [0, 1], to the same
    pipeline = CloudRemovalPipeline.from_pretrained()         # the same, with all settings, for many images

Scenes of any size, from file to file: `declouder.scene.remove_from_scene`. Scores: `declouder.metrics` and
`declouder.evaluation`. Recipes of training: `declouder.config`. Errors that a user can mend are
`declouder.errors.DeclouderError`s.

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
