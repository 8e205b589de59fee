"""lamella finds the cheapest way to serve a deep-learning model on serverless functions.

This module stays empty on purpose: `lamella.runtime` lives below it, and importing the runtime *is* a
function's cold start. Import what you need from the sub-packages.
"""

__version__ = "0.1.0"
