"""The bench: plans, sync policies and PyTorch's own ways measured in turns on the user's job and machine.

It measures complete processes through their own commands, and knows nothing of how a step is computed.
"""
