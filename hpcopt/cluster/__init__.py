"""Slurm: batch scripts, submission, what became of jobs. Imports neither torch, MPI nor h5py."""
