"""Spectra of recordings, in bands that are equally far apart on the mel scale

mel(f) = 2595 log10(1 + f / 700)
"""

import functools

import numpy as np

LOWEST = 80.0  # Hz


@functools.cache
def mel_bands(rate: int, window: int, count: int) -> np.ndarray:
    """Triangular bands over the frequencies of a window, (count, frequencies).

    Args:
      rate: samples a second.
      window: samples of a window.
      count: how many bands, from `LOWEST` to half the rate.
    """
    ends = 2595 * np.log10(1 + np.array([LOWEST, rate / 2]) / 700)
    hertz = 700 * (10 ** (np.linspace(*ends, count + 2) / 2595) - 1)
    frequencies = np.fft.rfftfreq(window, 1 / rate)
    low, middle, high = (hertz[i : i + count, None] for i in range(3))
    up = (frequencies - low) / (middle - low)
    down = (high - frequencies) / (high - middle)
    return np.maximum(0, np.minimum(up, down))


def log_mel(sound: np.ndarray, bands: np.ndarray, hop: int, floor: float) -> np.ndarray:
    """Logarithm of the power in bands, (frames, bands) float32.

    Args:
      sound: samples in [-1, 1], at least a window of them.
      bands: from `mel_bands`; they fix the length of a window.
      hop: samples from frame to frame.
      floor: power of what counts as silence, where full scale is 1.
    """
    window = 2 * (bands.shape[1] - 1)
    frames = np.lib.stride_tricks.sliding_window_view(sound, window)[::hop]
    power = np.abs(np.fft.rfft(frames * np.hanning(window))) ** 2 / window
    return np.log(power @ bands.T + floor).astype(np.float32)
