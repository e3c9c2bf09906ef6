"""Which requests are held for guilty of the engine's death."""

from __future__ import annotations

from gossamer.infer.request import Request, SamplingParams
from gossamer.serve.suspects import MANY, Suspects
from live_service import live


def asked(text: str, seed: int = 0, **sampling: object) -> Request:
    return Request(f"{text}{seed}", tuple(text.encode()), SamplingParams(5, seed=seed, **sampling))


def test_one_that_was_alone_when_it_crashed_has_done_it():
    suspects = Suspects()
    suspects.died([asked("a"), asked("a", seed=1)], crashed=True)  # two answers to one request
    assert suspects.is_guilty(asked("a", seed=2)) and not suspects.is_guilty(asked("b"))
    assert not suspects.is_guilty(asked("a", temperature=0.5))


def test_of_several_nobody_knows_until_one_is_there_again():
    suspects = Suspects()
    suspects.died([asked("a"), asked("b")], crashed=True)
    assert not suspects.is_guilty(asked("a")) and not suspects.is_guilty(asked("b"))
    suspects.died([asked("a"), asked("c")], crashed=True)
    assert suspects.is_guilty(asked("a")) and not suspects.is_guilty(asked("b"))


def test_one_that_was_there_when_the_process_was_killed_is_tried_once_more():
    suspects = Suspects()
    suspects.died([asked("a")], crashed=False)
    assert not suspects.is_guilty(asked("a"))
    suspects.died([asked("a")], crashed=False)
    assert suspects.is_guilty(asked("a"))


def test_one_that_was_answered_is_innocent():
    suspects = Suspects()
    suspects.died([asked("a"), asked("b")], crashed=True)
    suspects.answered(asked("a"))
    suspects.died([asked("a"), asked("c")], crashed=True)
    assert not suspects.is_guilty(asked("a"))


def test_only_so_many_are_remembered_and_not_for_ever(monkeypatch):
    suspects = Suspects()
    for number in range(MANY + 1):
        suspects.died([asked(str(number))], crashed=True)
    assert not suspects.is_guilty(asked("0")) and suspects.is_guilty(asked(str(MANY)))
    monkeypatch.setattr("gossamer.serve.suspects.FORGET", 0.0)
    assert not suspects.is_guilty(asked(str(MANY)))


def test_what_killed_the_engine_is_refused_and_everything_else_goes_on(folder):
    with live(folder) as service:
        assert service.say("SEGV").status_code == 503
        service.wait()
        again = service.say("SEGV")
        assert (again.status_code, again.json()["error"]["code"]) == (400, "engine_died")
        assert service.say("SEGV now").status_code == 503  # another prompt is another request
        service.wait()
        assert service.say("SAY on").json()["choices"][0]["message"]["content"] == "on"
        assert service.service.engine.state == "ready"
