"""Fuse barometer and accelerometer of a model rocket into height and speed."""
import numpy as np


class Altimeter:
    """Two-state Kalman filter driven by the vertical acceleration.

    State is (height in m, climb rate in m/s). Acceleration enters as a control
    input rather than as a measurement, which keeps the state small; its noise
    therefore shows up as process noise.
    """

    def __init__(self, accel_sd: float = 0.8, baro_sd: float = 1.5):
        self.x = np.zeros(2)
        self.P = np.diag([4.0, 1.0])
        self._q = accel_sd**2
        self._r = baro_sd**2

    def predict(self, accel: float, dt: float) -> None:
        F = np.array([[1.0, dt], [0.0, 1.0]])
        G = np.array([dt**2 / 2, dt])
        self.x = F @ self.x + G * accel
        self.P = F @ self.P @ F.T + np.outer(G, G) * self._q

    def correct(self, height: float) -> None:
        s = self.P[0, 0] + self._r
        k = self.P[:, 0] / s
        self.x = self.x + k * (height - self.x[0])
        # Joseph form: stays symmetric and positive even after an hour on the pad
        A = np.eye(2) - np.outer(k, [1.0, 0.0])
        self.P = A @ self.P @ A.T + np.outer(k, k) * self._r


def fly(rng, dt=0.02):
    """A made-up flight: 1.2 s of thrust, then coasting up to the apogee."""
    h = v = t = 0.0
    while v >= 0.0:
        a = 80.0 if t < 1.2 else -9.81 - 0.002 * v * v
        h, v, t = h + v * dt + a * dt * dt / 2, v + a * dt, t + dt
        yield t, h, v, a + rng.normal(0, 0.8), h + rng.normal(0, 1.5)


def test_beats_the_raw_barometer():
    rng = np.random.default_rng(11)
    f = Altimeter()
    raw, fused = [], []
    for i, (_, h, _, accel, baro) in enumerate(fly(rng)):
        f.predict(accel, 0.02)
        f.correct(baro)
        if i > 50:
            raw.append(baro - h)
            fused.append(f.x[0] - h)
    assert np.std(fused) < 0.5 * np.std(raw)
    assert abs(f.x[1]) < 2.0            # nearly at rest at the apogee
    assert np.all(np.linalg.eigvalsh(f.P) > 0)
