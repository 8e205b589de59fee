"""Measure a model on this machine, per unit and per cut."""
