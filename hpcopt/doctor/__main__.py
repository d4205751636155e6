"""``mpirun -n P python -m hpcopt.doctor P``: what a doctor without a launcher starts; see `trial`."""

import sys

from hpcopt.doctor import examine_together

sys.exit(not examine_together(int(sys.argv[1])))
