"""Damping, against numbers worked out by hand."""

import numpy as np
import pytest

from onnxshrink.kernels.moments import damped, ridge


def test_the_ridge_is_a_share_of_the_mean_square_of_each_moment() -> None:
    moment = np.stack([np.diag([1.0, 3.0]), np.diag([10.0, 30.0])])
    moment[:, 0, 1] = moment[:, 1, 0] = 0.5
    np.testing.assert_allclose(ridge(moment, 0.1), [0.2, 2.0])
    found = damped(moment, 0.1)
    np.testing.assert_allclose(found - moment, [0.2 * np.eye(2), 2.0 * np.eye(2)], atol=1e-12)
    np.testing.assert_allclose(damped(moment[0], 0.1), found[0])


def test_inputs_that_are_always_zero_leave_what_they_meet_as_it_is() -> None:
    """Beside others that are not: solving with nothing on the diagonal would give no numbers."""
    moment = np.stack([np.zeros((3, 3)), np.eye(3)])
    np.testing.assert_allclose(damped(moment, 0.5), [np.eye(3), 1.5 * np.eye(3)])


def test_what_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        damped(np.full((2, 2), np.inf), 0.1)
