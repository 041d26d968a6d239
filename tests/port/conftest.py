"""Tracing a family's modules takes most of a small import; the tests do it once a size."""

import os

import pytest

from tests.port import cases


@pytest.fixture
def cached_porters(monkeypatch):
    from rb_jax.port import exporting, importing

    for module in (importing, exporting):
        monkeypatch.setattr(module, "porter", cases.cached_porter)
    monkeypatch.setattr(os, "fsync", lambda number: None)  # no test outlives the machine
