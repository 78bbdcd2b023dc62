"""Fixtures of the checkers. Without `course check`, plain `pytest` runs them on the reference."""

import pytest


def pytest_configure(config):
    config.addinivalue_line("markers", "graded(check): a graded check of an exercise")


@pytest.fixture
def impl(request):
    """The implementation under test; `utils.checks.running` hands in others by parametrisation."""
    from utils.checks.implementations import reference

    return reference(request.module.__name__.split(".test_ch")[1][:2])


@pytest.fixture(scope="session")
def model():
    """The loaded default model (a SAETransformerBridge), one per process."""
    from utils import load

    return load().model


@pytest.fixture(scope="session")
def dictionaries():
    """The default profile's dictionaries by name, each loaded when it is first asked for."""
    from utils import load

    return load().dictionaries


@pytest.fixture(autouse=True)
def as_it_was(request):
    """Every check finds a cleared model and leaves one, and the session's random numbers go on as if it had not been.

    What a single call changes is put back after that call: `utils.checks.untouched`.
    """
    import torch

    from utils.checks.untouched import clear

    model = request.getfixturevalue("model") if "model" in request.fixturenames else None
    numbers = torch.get_rng_state()
    if model is not None:
        clear(model)
    yield
    torch.set_rng_state(numbers)
    if model is not None:
        clear(model)
