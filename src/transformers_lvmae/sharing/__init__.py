"""What leaves the machine: model cards, folders that carry their own code, and ONNX graphs.

Nothing here trains or evaluates; figures for a card are passed in by those who measured them.
"""
