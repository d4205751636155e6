"""Config files: TOML in, validated tables out. Imports neither torch nor MPI, so a wrong key answers at once."""

from hpcopt.config.io import RunConfig, dump, from_tables, load, resumable
from hpcopt.config.template import template

__all__ = ["RunConfig", "dump", "from_tables", "load", "resumable", "template"]
