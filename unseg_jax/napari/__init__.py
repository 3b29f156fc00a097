"""The plugin for napari: `planes` turns layers into images and back, `widget` is clicked."""
