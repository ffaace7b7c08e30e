"""Attach a frozen multilingual encoder to a frozen English LLM, trained on English only.

    bridge = layerbridge.load("runs/my-run")
    bridge.classify(["..."])

Importing this loads no torch; `load`, `pipeline` and `Bridge` do.
"""

from importlib.metadata import PackageNotFoundError, version
from typing import Any

try:
    __version__ = version("layerbridge")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

__all__ = ["Bridge", "__version__", "import_published", "load", "pipeline"]


def __getattr__(name: str) -> Any:
    if name == "load":
        from layerbridge.model.checkpoint import load_bridge

        return load_bridge
    if name == "pipeline":
        from layerbridge.model.pipeline import pipeline

        return pipeline
    if name == "import_published":
        from layerbridge.model.published import import_published

        return import_published
    if name == "Bridge":
        from layerbridge.model.bridge import Bridge

        return Bridge
    raise AttributeError(f"module 'layerbridge' has no attribute {name!r}")
