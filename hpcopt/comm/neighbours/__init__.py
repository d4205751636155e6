"""The `Neighbours` port: averages with the neighbours."""
