"""Communication: the ports that methods use, over MPI and in one process."""
