"""What a person sees while a run trains."""

from gossamer.train.config import TrainingConfig
from gossamer.train.display import Display


def test_a_line_shows_what_is_new_since_the_one_before(capsys, monkeypatch):
    display = Display(TrainingConfig(steps=100))
    display.step(10, 0.1, 1.0, loss=4.0, speed=1234.0, cost="MFU 10%")
    assert capsys.readouterr().err == "", "not yet time for a line"
    display.step(20, 0.2, 2.0, loss=3.0)
    display.step(20, 0.2, 2.0, validation=3.5)
    assert (
        capsys.readouterr().err == "step 20/100  loss 3.000  validation 3.500  1,234 tokens/s  MFU 10%  left 0:00:08\n"
    )
    display.step(30, 0.3, 3.0, validation=3.25)
    assert capsys.readouterr().err == "step 30/100  validation 3.250  left 0:00:07\n"
    monkeypatch.setattr(display, "_is_time", lambda: True)
    display.step(40, 0.4, 4.0, loss=2.0)
    assert capsys.readouterr().err == "step 40/100  loss 2.000  left 0:00:06\n"
