"""hpcopt: communication-efficient distributed optimisation as MPI jobs.

Importing this imports neither torch nor MPI: the names in `__init__.pyi` are loaded when they are first used.
"""

import lazy_loader

from hpcopt.control.crowd import give_way

give_way()  # MPI reads it when it starts, and whoever needs MPI has imported this before
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
