from skipstone.core.step.journal import Entry, Journal, Place
from skipstone.core.step.report import Report


def entry(source="a", workflow="w"):
    return Entry(source, "7", Place(workflow, "p", "3"), Report("MeanCache", "Speed", 8))


def test_the_oldest_run_goes_first():
    journal = Journal(kept=2)
    entries = [entry() for _ in range(3)]
    for e in entries:
        journal.keep(e)
    assert journal.of_source("a") == entries[1:]
    assert journal.of_report(entries[0].report) is None


def test_runs_are_found_by_source_by_workflow_and_by_report():
    journal = Journal()
    first, second = entry("a", "w"), entry("b", "v")
    journal.keep(first)
    journal.keep(second)
    assert journal.of_source("b") == [second]
    assert journal.of_workflow("w") == [first]
    assert journal.of_report(second.report) is second


def test_a_run_is_known_by_its_report_itself():
    journal = Journal()
    first, second = entry(), entry()
    assert first.report == second.report
    journal.keep(first)
    assert journal.of_report(second.report) is None


def test_a_run_that_ends_takes_its_own_place():
    from dataclasses import replace

    journal = Journal()
    first, second = entry(), entry()
    for e in (first, second, replace(first, running=False)):
        journal.keep(e)
    assert [e.running for e in journal.of_source("a")] == [False, True]
    assert len({e.number for e in journal.of_source("a")}) == 2
