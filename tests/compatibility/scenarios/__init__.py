"""Everything that is promised to work, or to fail, as it does with torch.nn."""

from scenarios import arguments, derivatives, dtypes, errors, module

__all__ = ["arguments", "derivatives", "dtypes", "errors", "module"]
