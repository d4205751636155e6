"""Data sets: where rows come from, and which worker gets which of them.

Nothing here needs torch or MPI; h5py and scikit-learn are imported when a data set needs them.
"""

from hpcopt.problems.data.arrays import array_dataset
from hpcopt.problems.data.dataset import Dataset, Split
from hpcopt.problems.data.given import given_rows
from hpcopt.problems.data.partition import Partition, partition
from hpcopt.problems.data.sources import open_dataset

__all__ = ["Dataset", "Partition", "Split", "array_dataset", "given_rows", "open_dataset", "partition"]
