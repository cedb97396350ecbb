"""Heating control for one room as an explicit state machine.

The transition table *is* the specification: the caretaker and I went through
it line by line on paper before any code was written.
"""

from dataclasses import dataclass, field
from enum import Enum, auto


class Mode(Enum):
    OFF = auto()
    HEATING = auto()
    COASTING = auto()      # target reached, valve shut, waiting for the drop
    WINDOW = auto()        # somebody airs the room
    FAULT = auto()


class Signal(Enum):
    TOO_COLD = auto()
    WARM_ENOUGH = auto()
    WINDOW_OPENED = auto()
    WINDOW_CLOSED = auto()
    SENSOR_LOST = auto()
    RESET = auto()


M, S = Mode, Signal
TABLE = {
    (M.OFF, S.TOO_COLD): M.HEATING,
    (M.OFF, S.WINDOW_OPENED): M.WINDOW,
    (M.HEATING, S.WARM_ENOUGH): M.COASTING,
    (M.HEATING, S.WINDOW_OPENED): M.WINDOW,
    (M.COASTING, S.TOO_COLD): M.HEATING,
    (M.COASTING, S.WINDOW_OPENED): M.WINDOW,
    (M.WINDOW, S.WINDOW_CLOSED): M.OFF,
    (M.FAULT, S.RESET): M.OFF,
}
# From anywhere: without a sensor we must not heat blindly.
TABLE |= {(m, S.SENSOR_LOST): M.FAULT for m in Mode}


@dataclass
class Room:
    target: float
    band: float = 0.5
    mode: Mode = Mode.OFF
    history: list[tuple[Signal, Mode]] = field(default_factory=list)

    @property
    def valve_open(self) -> bool:
        return self.mode is Mode.HEATING

    def signal(self, s: Signal) -> None:
        new = TABLE.get((self.mode, s))
        if new is None or new is self.mode:
            return                      # irrelevant here, e.g. WARM_ENOUGH while OFF
        self.mode = new
        self.history.append((s, new))

    def reading(self, celsius: float | None) -> None:
        if celsius is None or not -20 < celsius < 60:
            self.signal(S.SENSOR_LOST)
        elif celsius < self.target - self.band:
            self.signal(S.TOO_COLD)
        elif celsius >= self.target:
            self.signal(S.WARM_ENOUGH)


def test_a_winter_morning():
    room = Room(target=20.0)
    for t in (17.8, 18.9, 19.7, 20.0, 19.8, 19.6):
        room.reading(t)
    assert room.mode is Mode.COASTING, "19.6 is still inside the band"
    room.reading(19.4)
    assert room.valve_open
    room.signal(S.WINDOW_OPENED)
    room.reading(12.0)                  # cold air at the sensor must not matter
    assert not room.valve_open
    room.signal(S.WINDOW_CLOSED)
    room.reading(15.0)
    assert room.valve_open


def test_fault_needs_a_human():
    room = Room(target=20.0)
    room.reading(15.0)
    room.reading(-127.0)                # what a broken DS18B20 reports... roughly
    assert room.mode is Mode.FAULT
    room.reading(15.0)
    assert not room.valve_open
    room.signal(S.RESET)
    room.reading(15.0)
    assert room.valve_open


def test_every_mode_can_be_left():
    for m in Mode:
        assert any(a is m and b is not m for (a, _), b in TABLE.items()), m
