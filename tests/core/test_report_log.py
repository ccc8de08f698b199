from skipstone.core.step.report.report import Report
from skipstone.core.step.report.report_log import LoggedRun, Place, ReportLog


def entry(source="a", workflow="w"):
    return LoggedRun(source, "7", Place(workflow, "p", "3"), Report("MeanCache", "Speed", 8))


def test_the_oldest_run_goes_first():
    journal = ReportLog(kept=2)
    entries = [entry() for _ in range(3)]
    for e in entries:
        journal.keep(e)
    assert journal.of_source("a") == entries[1:]
    assert journal.of_report(entries[0].report) is None


def test_runs_are_found_by_source_by_workflow_and_by_report():
    journal = ReportLog()
    first, second = entry("a", "w"), entry("b", "v")
    journal.keep(first)
    journal.keep(second)
    assert journal.of_source("b") == [second]
    assert journal.of_workflow("w") == [first]
    assert journal.of_report(second.report) is second


def test_a_run_is_known_by_its_report_itself():
    journal = ReportLog()
    first, second = entry(), entry()
    assert first.report == second.report
    journal.keep(first)
    assert journal.of_report(second.report) is None


def test_a_run_that_ends_takes_its_own_place():
    from dataclasses import replace

    journal = ReportLog()
    first, second = entry(), entry()
    for e in (first, second, replace(first, running=False)):
        journal.keep(e)
    assert [e.running for e in journal.of_source("a")] == [False, True]
    assert len({e.number for e in journal.of_source("a")}) == 2


# what a node can tell


def kept(*runs):
    """A log of runs (source, workflow, prompt, sampler), and the indices of the entries in it."""
    journal = ReportLog()
    for source, workflow, prompt, sampler in runs:
        journal.keep(LoggedRun(source, "4", Place(workflow, prompt, sampler), Report("Name", "", 8)))
    return journal


def told(journal, *where, **what):
    return [(e.place.prompt, e.place.sampler) for e in journal.query(Place(*where), **what)]


def test_all_runs_of_this_prompt_that_a_latent_comes_from():
    journal = kept(
        ("a", "", "1", "8"), ("a", "", "2", "8"), ("a", "", "2", "9"), ("a", "", "2", "8"), ("b", "", "2", "7")
    )
    assert told(journal, "", "2", samplers={"8", "9", "3"}) == [("2", "8"), ("2", "9"), ("2", "8")]
    assert told(journal, "", "2") == [("2", "8"), ("2", "9"), ("2", "8"), ("2", "7")]


def test_a_sampler_that_comfyui_had_no_need_to_run_again_is_told_by_its_last_prompt():
    journal = kept(("a", "w", "1", "8"), ("a", "w", "2", "8"), ("a", "w", "2", "9"), ("a", "w", "3", "9"))
    assert told(journal, "w", "3", samplers={"8", "9"}) == [("2", "8"), ("3", "9")]


def test_another_workflow_or_prompt_is_none_of_its_business():
    journal = kept(("a", "other", "1", "8"), ("a", "", "2", "8"))
    assert told(journal, "w", "3", samplers={"8"}) == []
    assert told(journal, "", "", samplers={"8"}) == []  # runs without workflow and prompt do not belong together


def test_a_patched_models_runs_are_its_own_in_every_prompt():
    journal = kept(("a", "", "1", "8"), ("b", "", "2", "8"), ("a", "", "2", "9"))
    assert told(journal, "", "3", sources={"a"}) == [("2", "9")]
    assert told(journal, "", "3", sources={"a"}, samplers={"8"}) == [("1", "8")]
    assert told(journal, "", "3", sources={"c"}) == []


def test_what_a_node_expanded_to_counts_as_the_node():
    journal = kept(("a", "", "1", "7.0.0.2"), ("a", "", "1", "70.0.0.2"))
    assert told(journal, "", "1", samplers={"7"}) == [("1", "7.0.0.2")]
