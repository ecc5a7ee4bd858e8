"""What models that stand in for real ones share."""

from __future__ import annotations

import pytest

from fdcore.models.base import Model


class Double(Model):
    """A model of which a test asks only what it defines: anything else fails the test."""

    bytes_per_edge = 1.0

    def _edge_count(self, structure):
        return 1.0

    def _evaluate(self, structures):
        pytest.fail("this stand-in is not asked for forces")

    def _gradients(self, structure, method):
        pytest.fail("this stand-in is not asked for gradients")

    def _displaced(self, structure, displacements):
        pytest.fail("this stand-in is not displaced")
