"""Decide how to divide a model: prices of slices, planners, the plan document and its laws."""
