"""Results: load, tables, plots. Neither MPI nor torch."""
