"""A model as a graph: import, shapes, cuts, slices, offline optimisation."""
