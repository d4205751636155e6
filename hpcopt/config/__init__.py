"""Config files: TOML in, validated tables out. Imports neither torch nor MPI."""

from hpcopt.config.io import RunConfig, check_table, dump, from_tables, load, parse, resumable
from hpcopt.config.template import template

__all__ = ["RunConfig", "check_table", "dump", "from_tables", "load", "parse", "resumable", "template"]
