"""A script without a training step."""

print("only evaluates")
