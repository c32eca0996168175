"""DeDiM for ComfyUI: copy this folder into ComfyUI's `custom_nodes`; README.md says the rest."""

from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
