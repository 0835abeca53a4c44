"""Model cards, exports (folders with their own code, ONNX graphs) and the conversion of VideoMAE checkpoints.

Nothing here trains or evaluates: callers pass the metrics of a card.
"""
