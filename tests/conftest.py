"""What holds for all tests: a property that takes long on a busy machine is not broken."""

from hypothesis import settings

settings.register_profile("macadam", deadline=None)
settings.load_profile("macadam")
