"""Pages to read: of a comparison, of one model on several platforms, of a front; self-contained HTML, figures inline.

Geometry (pure numbers, in the modules named after the figures) is apart from markup (the templates); what a figure
draws can be tested without a browser, and the markup escapes everything by itself.
"""

from lamella.report.page import page, staircase_svg, write
from lamella.report.planned import front_page, places_page, write_page

__all__ = ["front_page", "page", "places_page", "staircase_svg", "write", "write_page"]
