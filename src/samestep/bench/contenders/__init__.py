"""Contenders: the processes that a comparison measures, ours and PyTorch's own ways, each with its loop of turns."""
