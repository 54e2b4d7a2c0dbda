"""What a prediction is explained by: neurons, heads and layers, scored and named.

May import capture, architectures, attribution and tasks; never the engine around it.
"""
