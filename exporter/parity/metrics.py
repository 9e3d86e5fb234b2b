"""How far an output is from the truth: plain formulas, and what they mean at their edges.

All arithmetic is float64. `t` is the truth, `a` the output under test, `d = a - t`, sums run over
all elements.

Edges, the same for every metric:

- shapes differ, or there are no elements, or a NaN or Inf on either side: `NotComparable`. No number
  is invented; the caller turns it into a verdict that is never PASS.
- `t` all zero and `a` all zero: exact (relative error 0, cosine 1, SQNR +inf).
- `t` all zero and `a` not: relative error +inf, cosine 0, SQNR -inf.
- `a` all zero and `t` not: relative error 1, cosine 0, SQNR 0 dB.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from exporter.parity.schema import Metrics

if TYPE_CHECKING:
    import numpy as np

HISTOGRAM_LOW, HISTOGRAM_HIGH, BINS_PER_DECADE = -12, 4, 2
"""Decades that the histogram spans; below and above are one open bin each."""


class NotComparable(ValueError):
    """Two arrays for which no metric exists; the message says why."""


def histogram_edges() -> list[float]:
    """Edges of the inner bins of `Metrics.histogram`: two to a decade from 1e-12 to 1e4."""
    count = (HISTOGRAM_HIGH - HISTOGRAM_LOW) * BINS_PER_DECADE
    return [10.0 ** (HISTOGRAM_LOW + i / BINS_PER_DECADE) for i in range(count + 1)]


def compare(actual: np.ndarray, truth: np.ndarray) -> Metrics:
    """Every metric of one output.

    Args:
        actual: The output under test, any real dtype.
        truth: The truth, same shape.

    Raises:
        NotComparable: Shapes differ, no elements, or not finite.
    """
    import numpy as np

    if actual.shape != truth.shape:
        raise NotComparable(f"the shape is {list(actual.shape)}, the truth's is {list(truth.shape)}")
    if truth.size == 0:
        raise NotComparable("there are no elements")
    a, t = actual.astype(np.float64), truth.astype(np.float64)
    for name, array in (("the output", a), ("the truth", t)):
        bad = int(array.size - np.count_nonzero(np.isfinite(array)))
        if bad:
            raise NotComparable(f"{name} has {bad} values that are NaN or Inf")
    difference = a - t
    distance = np.abs(difference)
    worst = int(np.argmax(distance))
    error_norm, truth_norm = norm(difference), norm(t)
    index = np.unravel_index(worst, t.shape)
    return Metrics(
        max_abs=float(distance.reshape(-1)[worst]),
        relative_l2=relative(error_norm, truth_norm),
        cosine=cosine(a, t),
        sqnr_db=sqnr_db(error_norm, truth_norm),
        worst_index=[int(i) for i in index],
        worst_actual=float(a.reshape(-1)[worst]),
        worst_truth=float(t.reshape(-1)[worst]),
        truth_max=float(np.max(np.abs(t))),
        truth_norm=truth_norm,
        elements=int(t.size),
        histogram=histogram(distance),
    )


def norm(values: np.ndarray) -> float:
    """Euclidean norm `sqrt(sum(x^2))`, scaled by the largest magnitude so that it neither overflows
    nor underflows (the idea of BLAS `dnrm2`; Blue 1978, ACM TOMS 4(1))."""
    import numpy as np

    largest = float(np.max(np.abs(values)))
    if largest == 0.0 or not math.isfinite(largest):
        return largest
    scaled = values / largest
    return largest * math.sqrt(float(np.sum(scaled * scaled)))


def relative(error_norm: float, truth_norm: float) -> float:
    """Relative L2 error `||a - t|| / ||t||` (Higham, Accuracy and Stability of Numerical Algorithms, 1.2)."""
    if truth_norm == 0.0:
        return 0.0 if error_norm == 0.0 else math.inf
    return error_norm / truth_norm


def cosine(actual: np.ndarray, truth: np.ndarray) -> float:
    """Cosine similarity `sum(a t) / (||a|| ||t||)`, in [-1, 1] (Salton & McGill, Introduction to Modern
    Information Retrieval, 1983); scale-blind, so never judged alone."""
    import numpy as np

    norms = norm(actual), norm(truth)
    if norms == (0.0, 0.0):
        return 1.0
    if 0.0 in norms:
        return 0.0
    product = float(np.sum((actual / norms[0]) * (truth / norms[1])))
    return max(-1.0, min(1.0, product))


def sqnr_db(error_norm: float, truth_norm: float) -> float:
    """Signal to quantisation noise `10 log10(sum t^2 / sum d^2)` in dB (Oppenheim & Schafer,
    Discrete-Time Signal Processing, 4.8); the noise is whatever differs."""
    if error_norm == 0.0:
        return math.inf
    if truth_norm == 0.0:
        return -math.inf
    return 20.0 * (math.log10(truth_norm) - math.log10(error_norm))


def psnr_db(actual: np.ndarray, truth: np.ndarray, peak: float = 1.0) -> float:
    """Peak signal to noise ratio `10 log10(peak^2 / mean(d^2))` in dB (ITU-T J.340); +inf when equal.

    Args:
        actual / truth: Pictures of one shape, floats in [0, peak].

    Raises:
        NotComparable: As `compare`.
    """
    elements = compare(actual, truth).elements
    error = norm(actual.astype("float64") - truth.astype("float64"))
    mean = error * error / elements
    return math.inf if mean == 0.0 else 10.0 * math.log10(peak * peak / mean)


def ssim(actual: np.ndarray, truth: np.ndarray, peak: float = 1.0, window: int = 7) -> float:
    """Mean structural similarity over channels with a uniform window (Wang et al. 2004, IEEE TIP 13(4)).

    With means m, unbiased variances v and the covariance vxy inside the window, at every place
    `(2 mx my + c1) (2 vxy + c2) / ((mx^2 + my^2 + c1) (vx + vy + c2))`, where
    `c1 = (0.01 peak)^2` and `c2 = (0.03 peak)^2`.

    Args:
        actual / truth: `[height, width, channel]`, floats in [0, peak], at least `window` wide and high.

    Raises:
        NotComparable: As `compare`, or the picture is smaller than the window.
    """
    import numpy as np

    compare(actual, truth)
    if min(truth.shape[:2]) < window:
        raise NotComparable(f"the picture is smaller than SSIM's window of {window}")
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    view = np.lib.stride_tricks.sliding_window_view
    values = []
    for channel in range(truth.shape[2]):
        x = view(actual[:, :, channel].astype(np.float64), (window, window))
        y = view(truth[:, :, channel].astype(np.float64), (window, window))
        mx, my = x.mean((-1, -2)), y.mean((-1, -2))
        count = window * window
        unbiased = count / (count - 1)
        vx = ((x * x).mean((-1, -2)) - mx * mx) * unbiased
        vy = ((y * y).mean((-1, -2)) - my * my) * unbiased
        vxy = ((x * y).mean((-1, -2)) - mx * my) * unbiased
        similarity = ((2 * mx * my + c1) * (2 * vxy + c2)) / ((mx * mx + my * my + c1) * (vx + vy + c2))
        values.append(float(similarity.mean()))
    return float(np.mean(values))


def histogram(distance: np.ndarray) -> list[int]:
    """Counts of |d| by size: exactly 0; below the first edge; one per bin of `histogram_edges`; above."""
    import numpy as np

    edges = np.array(histogram_edges())
    flat = distance.reshape(-1)
    zero = int(np.count_nonzero(flat == 0.0))
    places = np.searchsorted(edges, flat[flat > 0.0], side="right")
    counts = np.bincount(places, minlength=len(edges) + 1)
    return [zero, *(int(n) for n in counts)]
