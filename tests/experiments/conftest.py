"""The tiny experiments of tests/support, for the tests of this room."""

from tests.support.checkpoint_folders import make_folder, source, text, tokenizer  # noqa: F401
from tests.support.experiments import corpus, experiment_file, make_experiment, one_thread, write_experiment  # noqa: F401
from tests.support.sweep_fixtures import copied, finished, one_thread_and_a_cache, posthoc, root, trainings  # noqa: F401
