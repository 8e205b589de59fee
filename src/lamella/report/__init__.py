"""One page to read of a comparison: self-contained HTML, figures inline.

Geometry (pure numbers, in the modules named after the figures) is apart from markup (the templates); what a figure
draws can be tested without a browser, and the markup escapes everything by itself.
"""

from lamella.report.page import page, staircase_svg, write

__all__ = ["page", "staircase_svg", "write"]
