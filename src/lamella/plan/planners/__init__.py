"""Planners: pure functions of a priced model and a request, each a frozen value with a name."""
