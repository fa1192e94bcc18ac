"""Fixtures that every test may ask for."""

pytest_plugins = ["tests.fixtures_store", "tests.fixtures_bench", "tests.fixtures_browser"]
