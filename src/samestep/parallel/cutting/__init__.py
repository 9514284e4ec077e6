"""Cutting: record a forward as calls, cut it between stages and around sliced layers, and compute slices of layers.
The room knows shapes, calls and parameters; who computes a segment, and how tensors move, it does not know."""
