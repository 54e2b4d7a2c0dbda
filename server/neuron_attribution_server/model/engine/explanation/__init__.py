"""From captured states to the answer: runs the method's formulas on explained rows and names what they find."""
