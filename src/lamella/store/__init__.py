"""One copy of the weights for every process of a host: artifacts on disk, segments in memory, leases of processes.

Content-addressed: a segment is called by the hash of its bytes, so equal weights of different models are one segment.
This package loads nothing by itself: what a client needs is light, what puts models needs the planner's libraries.
"""
