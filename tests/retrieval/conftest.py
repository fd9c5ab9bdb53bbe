"""Vectors, queries and indexes that several files of tests share."""

import pytest
from helpers.neighbours import CODEBOOKS, COUNT, NUM_LISTS, clustered

from jax_maddness import build_index
from jax_maddness.retrieval.index import METRICS


@pytest.fixture(scope="session")
def vectors():
    return clustered(1, COUNT)


@pytest.fixture(scope="session")
def queries():
    return clustered(2, 30)


@pytest.fixture(scope="session")
def indexes(vectors):
    return {metric: build_index(vectors, CODEBOOKS, metric=metric) for metric in METRICS}


@pytest.fixture(scope="session")
def listed(vectors):
    return {metric: build_index(vectors, CODEBOOKS, metric=metric, num_lists=NUM_LISTS) for metric in METRICS}


@pytest.fixture(params=METRICS)
def metric(request):
    return request.param
