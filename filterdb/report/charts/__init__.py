"""Charts: Altair specifications rendered to self-contained SVG, without a runtime in the page."""
