"""Which requests are blamed for the engine's death."""

from __future__ import annotations

from gossamer.infer.request import Request, SamplingParams
from gossamer.serve.engine_process import MAX_RECORDED, CrashRecord
from live_service import live


def asked(text: str, seed: int = 0, **sampling: object) -> Request:
    return Request(f"{text}{seed}", tuple(text.encode()), SamplingParams(5, seed=seed, **sampling))


def test_one_that_was_alone_when_it_crashed_has_done_it():
    record = CrashRecord()
    record.add([asked("a"), asked("a", seed=1)], by_itself=True)  # two answers to one request
    assert record.is_blamed(asked("a", seed=2)) and not record.is_blamed(asked("b"))
    assert not record.is_blamed(asked("a", temperature=0.5))


def test_of_several_nobody_knows_until_one_is_there_again():
    record = CrashRecord()
    record.add([asked("a"), asked("b")], by_itself=True)
    assert not record.is_blamed(asked("a")) and not record.is_blamed(asked("b"))
    record.add([asked("a"), asked("c")], by_itself=True)
    assert record.is_blamed(asked("a")) and not record.is_blamed(asked("b"))


def test_one_that_was_there_when_the_process_was_killed_is_tried_once_more():
    record = CrashRecord()
    record.add([asked("a")], by_itself=False)
    assert not record.is_blamed(asked("a"))
    record.add([asked("a")], by_itself=False)
    assert record.is_blamed(asked("a"))


def test_one_that_was_answered_is_innocent():
    record = CrashRecord()
    record.add([asked("a"), asked("b")], by_itself=True)
    record.clear(asked("a"))
    record.add([asked("a"), asked("c")], by_itself=True)
    assert not record.is_blamed(asked("a"))


def test_only_so_many_are_remembered_and_not_for_ever(monkeypatch):
    record = CrashRecord()
    for number in range(MAX_RECORDED + 1):
        record.add([asked(str(number))], by_itself=True)
    assert not record.is_blamed(asked("0")) and record.is_blamed(asked(str(MAX_RECORDED)))
    monkeypatch.setattr("gossamer.serve.engine_process.BLAME_SECONDS", 0.0)
    assert not record.is_blamed(asked(str(MAX_RECORDED)))


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
