"""What communication costs in bytes, messages and seconds, for ports that count and for predictions."""
