"""The `SparseSum` port: sums of vectors of which every worker gives a few entries."""
