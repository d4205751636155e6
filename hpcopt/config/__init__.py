"""Config files: TOML in, validated tables out. Imports neither torch nor MPI."""

from hpcopt.config.io import RunConfig, dump, from_tables, load, resumable
from hpcopt.config.template import template

__all__ = ["RunConfig", "dump", "from_tables", "load", "resumable", "template"]
