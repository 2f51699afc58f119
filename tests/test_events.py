"""A job: its events, its result, and how it is stopped."""

from collections.abc import Generator

import pytest

from recast.events import Event, Job, Note, Step, job


@job
def counting(total: int, closed: list[int]) -> Generator[Event, None, str]:
    try:
        for index in range(1, total + 1):
            yield Step(stage="count", index=index, total=total)
        return f"counted to {total}"
    finally:
        closed.append(total)


@job
def nested(closed: list[int]) -> Generator[Event, None, str]:
    yield Note(text="first")
    result = yield from counting(2, closed)
    return result.upper()


def test_a_loop_gets_every_event_and_then_the_result() -> None:
    work = counting(3, [])
    assert [event.index for event in work if isinstance(event, Step)] == [1, 2, 3]
    assert work.result == "counted to 3"


def test_a_job_inside_a_job_passes_on_its_events() -> None:
    work = nested([])
    assert [type(event) for event in work] == [Note, Step, Step]
    assert work.result == "COUNTED TO 2"


def test_run_passes_events_to_a_function_and_returns_the_result() -> None:
    seen: list[Event] = []
    assert counting(2, []).run(seen.append) == "counted to 2"
    assert len(seen) == 2


def test_there_is_no_result_before_the_end() -> None:
    work = counting(2, [])
    next(work)
    with pytest.raises(RuntimeError, match="the job has not ended"):
        _ = work.result


def test_a_job_that_is_closed_stops_and_cleans_up() -> None:
    closed: list[int] = []
    work = nested(closed)
    next(work)
    next(work)
    work.close()
    assert closed == [2]
    assert list(work) == []


def test_an_exception_in_the_event_function_stops_the_work() -> None:
    closed: list[int] = []

    def stop(event: Event) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        counting(5, closed).run(stop)
    assert closed == [5]


def test_an_exception_that_is_thrown_in_can_be_handled() -> None:
    @job
    def patient() -> Generator[Event, None, str]:
        try:
            yield Note(text="waiting")
        except ValueError as error:
            return str(error)
        return "undisturbed"

    work = patient()
    next(work)
    with pytest.raises(StopIteration):
        work.throw(ValueError("enough"))
    assert work.result == "enough"
    assert patient().run() == "undisturbed"


def test_a_job_with_nothing_to_report_has_its_result() -> None:
    work = Job.finished(7)
    assert list(work) == []
    assert work.result == 7
