"""What ships inside a function: load a package, take tensors, run, give tensors.

Its import is the cold start, so it imports the standard library, numpy, onnxruntime, msgspec and lamella's leaves only.
"""
