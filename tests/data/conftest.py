"""The tiny experiments of tests/support, for the tests of this room."""

from tests.support.experiments import corpus, experiment_file, make_experiment, one_thread, write_experiment  # noqa: F401
