"""The step caches' setting: what was recorded of the user's models is shown with its size, and deleted."""

import re

from playwright.sync_api import expect


def test_what_was_recorded_is_deleted(open_desk):
    desk = open_desk(dark=False)
    folder = desk.server.folder / "user" / "skipstone" / "calibration"
    folder.mkdir(parents=True, exist_ok=True)
    own = [folder / f"{'a' * 32}{end}" for end in (".recipe.json", ".partial.json")]
    foreign = folder / "notes.json"
    for file in (*own, foreign):
        file.write_text("x" * 1000)
    desk.evaluate("() => app.extensionManager.command.execute('Comfy.ShowSettingsDialog')")
    dialog = desk.page.get_by_test_id("settings-dialog")
    dialog.get_by_role("button", name="Skipstone", exact=True).click()
    setting = dialog.locator("[data-setting-id='Skipstone.Calibration']")
    button, told = setting.get_by_role("button", name="Delete all"), setting.get_by_role("status")
    expect(told).to_have_text(re.compile(r"^\d+ setups?, [\d.]+ kB$"))
    desk.shoot("step-settings-light")
    button.click()
    desk.page.get_by_text(re.compile("Delete what was recorded of your models")).wait_for()
    desk.shoot("step-settings-confirm-light")
    desk.page.get_by_role("dialog").last.get_by_text("Delete", exact=True).click()
    expect(told).to_have_text("Nothing recorded.")
    expect(button).to_be_disabled()
    assert not any(file.exists() for file in own) and foreign.exists()
    foreign.unlink()
