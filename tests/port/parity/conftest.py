"""What stock libraries do in these tests."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """These tensors are too small to be worth torch's threads."""
    try:
        import torch
    except ImportError:  # then every test here skips itself
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
