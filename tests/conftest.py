"""For all tests."""

from hypothesis import settings

settings.register_profile("hpcopt", deadline=None)  # times say nothing on a machine that has other work
settings.load_profile("hpcopt")
