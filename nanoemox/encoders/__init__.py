"""The three frozen encoders: what they see is architecture sections 2, 3 and 8."""
