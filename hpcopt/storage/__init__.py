"""HDF5 on disk: the slab door, checkpoints, the metrics file, provenance."""
