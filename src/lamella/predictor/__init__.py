"""Predicts what was never run: fits of single operators, measured once per machine over a spread of shapes."""
