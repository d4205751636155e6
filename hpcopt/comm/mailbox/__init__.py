"""Vectors that workers put to each other without waiting: over windows or messages, and the twin."""
