"""What every benchmark shares."""

from rnnfast.benchmark.measure import *  # noqa: F403
