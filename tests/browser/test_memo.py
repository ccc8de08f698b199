"""The memo's tab in the sidebar and its settings, on a server of its own: with a Redis, where there is one to start."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from playwright.sync_api import expect
from served import ask, running, wait_until_up

from skipstone.core.memo.settings import Settings
from skipstone.patch.memo import instance as process
from skipstone.tests.browser.conftest import FILES, ROOT

SECRETS = ("s3cret", "127.0.0.1", "redis://me", "/memo-entries")
WAIT = 20_000  # ms


@pytest.fixture(scope="module")
def redis(tmp_path_factory):
    """A Redis of our own, or None."""
    pytest.importorskip("redis", reason='Redis\' package is missing: pip install "redis>=5"')
    from skipstone.tests.memo.test_redis import PROGRAM, Server

    if PROGRAM is None:
        yield None
        return
    made = Server(tmp_path_factory.mktemp("redis"))
    made.client().acl_setuser("me", enabled=True, passwords=["+s3cret"], keys=["*"], commands=["+@all"])
    yield made
    made.stop()


@pytest.fixture(scope="module")
def server(tmp_path_factory, redis):
    """With a folder and a Redis that the environment names: the password is the owner's to give there."""
    folder = tmp_path_factory.mktemp("server")
    with pytest.MonkeyPatch.context() as owner:
        for name in [name for name in os.environ if name.startswith("SKIPSTONE_")]:
            owner.delenv(name)
        owner.setenv("SKIPSTONE_MEMO_FOLDER", str(folder / "memo-entries"))
        if redis:
            owner.setenv("SKIPSTONE_MEMO_REDIS", redis.url.replace("//", "//me:s3cret@"))
        with running(Path(os.environ["COMFYUI_PATH"]), {"skipstone": ROOT}, FILES, 1, folder / "log") as server:
            wait_until_up(server)
            yield server


ALWAYS = {"Skipstone.Sidebar": "always"}


def button(desk):
    return desk.page.get_by_test_id("side-toolbar").get_by_role("button", name="Encode cache")


def tab(desk):
    """The panel, opened as a person does."""
    desk.page.set_default_timeout(WAIT)
    expect.set_options(timeout=WAIT)
    button(desk).click()
    panel = desk.page.get_by_role("region", name="Encode cache")
    expect(panel.get_by_role("group", name="Redis")).to_be_visible()
    return panel


def theme(desk, name):
    desk.page.evaluate("(name) => app.extensionManager.setting.set('Comfy.ColorPalette', name)", name)
    desk.settle()


def shown(desk, panel, name):
    """Pictures in both themes; what is shown names no place and no password."""
    for palette in ("dark", "light"):
        theme(desk, palette)
        desk.shoot(f"{name}-{palette}")
    text = desk.page.locator("body").inner_text()
    assert not any(word in text for word in SECRETS)


def confirm(desk, button):
    desk.page.get_by_role("dialog").get_by_role("button", name=button).click()
    expect(desk.page.get_by_role("dialog")).to_have_count(0)


def test_numbers_and_clearing(open_desk, redis):
    desk = open_desk()
    assert button(desk).count() == 0  # nothing in this graph uses it
    desk.add("SkipstoneMemoVAE", 60, 60)
    panel = tab(desk)
    desk.evaluate("() => app.graph.clear()")
    expect(panel).to_contain_text("Nothing cached yet.")
    expect(panel.get_by_role("group", name="Redis")).to_contain_text("connected" if redis else "off")
    expect(panel.get_by_role("button", name="Clear everything")).to_be_disabled()
    assert not any(word in panel.inner_text() for word in SECRETS)

    picture = desk.add("EmptyImage", 420, 120, width=64, height=64)
    vae = desk.add("VAELoader", 420, 420, vae_name="skipstone_demo_vae.safetensors")
    memo = desk.add("SkipstoneMemoVAE", 760, 420)
    encode = desk.add("VAEEncode", 760, 120)
    save = desk.add("SaveLatent", 1060, 120)
    for link in (
        (vae, "VAE", memo, "vae"),
        (memo, "VAE", encode, "vae"),
        (picture, "IMAGE", encode, "pixels"),
        (encode, "LATENT", save, "samples"),
    ):
        desk.connect(*link)
    for n, color in enumerate((1, 2, 1)):  # ComfyUI itself keeps the last picture alone
        desk.page.evaluate(
            "([id, color]) => { app.graph.getNodeById(id).widgets.find(w => w.name === 'color').value = color }",
            [picture, color],
        )
        desk.queue()
        if n < 2:  # no "0%" as long as nothing can have been reused
            expect(panel).to_contain_text(f"{n + 1} saved")
            expect(panel).not_to_contain_text("hit rate")
    expect(panel).to_contain_text(
        "1 of 3 reused, 2 new (saved for next time)"
    )  # without a click: it follows what is run
    expect(panel).to_contain_text("33% hit rate")
    expect(panel.get_by_role("row", name="latents")).to_contain_text(re.compile(r"1\s*2\s*33%"))
    memory, disk = panel.get_by_role("group", name="Memory"), panel.get_by_role("group", name="Disk")
    for card in (memory, disk):
        expect(card).to_contain_text(re.compile(r"2 entries, .*kB of .* GB"))
    shown(desk, panel, "memo")

    # with the keys alone; and a No changes nothing
    clear = panel.get_by_role("button", name="Clear latents from memory")
    clear.focus()
    desk.page.keyboard.press("Enter")
    expect(desk.page.get_by_role("dialog")).to_contain_text("Delete 2 entries of latents")
    desk.shoot("memo-confirm-light")
    confirm(desk, "Cancel")
    panel.get_by_role("button", name="Refresh").click()
    expect(memory).to_contain_text("2 entries")
    clear.click()
    confirm(desk, "Delete")
    expect(panel.get_by_role("status")).to_contain_text("Memory: 2 entries removed")
    expect(memory).to_contain_text("0 entries")
    expect(disk).to_contain_text("2 entries")
    panel.get_by_role("button", name="Clear everything").click()
    confirm(desk, "Delete")
    expect(panel.get_by_role("status")).to_contain_text("Disk: 2 entries removed")
    expect(disk).to_contain_text("0 entries")

    # away and back
    button(desk).click()
    expect(panel).to_have_count(0)
    button(desk).click()
    expect(disk).to_contain_text("0 entries")


def test_settings(open_desk, redis):
    desk = open_desk(vue=True, dark=False, **ALWAYS)
    page, panel = desk.page, tab(desk)
    ours = page.evaluate(
        """() => Object.values(app.extensionManager.setting.settings)
                .filter(s => /^Skipstone\\.(Memo|Provider)/.test(s.id)).map(s => [s.id, s.tooltip, s.defaultValue])"""
    )
    read = set(re.findall(r"Skipstone\.\S+", process.__doc__ or ""))
    assert {name for name, _, _ in ours} == read | {"Skipstone.Memo.RedisTest"}
    assert all(len(tooltip) > 40 for _, tooltip, _ in ours)
    usual, default = Settings(), {name: value for name, _, value in ours}
    assert default["Skipstone.Memo.Memory"] == usual.memory
    assert default["Skipstone.Memo.Disk"] == usual.disk and default["Skipstone.Memo.Days"] == usual.disk_days
    assert default["Skipstone.Memo.RedisDays"] == usual.redis_days
    assert default["Skipstone.Memo.RedisMB"] == usual.redis_entry

    def said():
        return {
            k: v
            for k, v in json.loads(ask(desk.server, "/settings")).items()
            if k.startswith("Skipstone.") and k not in ALWAYS
        }

    def setting(name):
        return dialog.locator(f"[data-setting-id='{name}']")

    panel.get_by_role("button", name="Settings").click()
    dialog = page.get_by_test_id("settings-dialog")
    expect(dialog.locator("[data-setting-id='Skipstone.Memo']")).to_be_visible()  # at our page
    dialog.get_by_placeholder(re.compile("Search Settings")).fill("skip entries larger")
    expect(setting("Skipstone.Memo.RedisMB")).to_be_visible()
    dialog.get_by_placeholder(re.compile("Search Settings")).fill("")
    dialog.get_by_role("button", name="Skipstone", exact=True).click()
    expect(setting("Skipstone.Memo")).to_be_visible()
    expect(setting("Skipstone.Memo.Memory").get_by_placeholder("10% of RAM")).to_be_visible()
    desk.shoot("memo-settings-light")
    assert said() == {}

    for name, number in (("Skipstone.Memo.Disk", "5"), ("Skipstone.Memo.Memory", "1.5")):
        setting(name).locator("input").click()
        page.keyboard.press("Control+A")
        page.keyboard.type(number)
        page.keyboard.press("Tab")
    setting("Skipstone.Memo").get_by_role("switch").click()
    address = setting("Skipstone.Memo.Redis").get_by_role("textbox")
    for wrong, why in (
        ("redis://:hidden@there", "holds a password"),
        ("redis://there?password=hidden", "holds a password"),
        ("http://there", "begins with redis://"),
    ):
        address.fill(wrong)
        address.press("Tab")
        expect(setting("Skipstone.Memo.Redis").get_by_role("status")).to_contain_text(why)
    desk.shoot("memo-settings-refused-light")
    address.fill("redis://there:6380")
    address.press("Enter")
    expected = {"": False, ".Disk": 5, ".Memory": 1.5, ".Redis": "redis://there:6380"}
    for _ in range(50):  # the front end takes its time
        if len(said()) >= len(expected):
            break
        page.wait_for_timeout(100)
    assert said() == {f"Skipstone.Memo{name}": value for name, value in expected.items()}
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    expect(panel).to_contain_text("The settings have changed. Restart ComfyUI to apply them.")
    overruled = "Folder, Redis" if redis else "Folder"
    expect(panel).to_contain_text(f"Set by environment variables, not by the settings: {overruled}.")


def test_the_connection(open_desk, redis):
    desk = open_desk(**ALWAYS)
    panel = tab(desk)
    panel.get_by_role("button", name="Settings").click()
    dialog = desk.page.get_by_test_id("settings-dialog")
    tested = dialog.locator("[data-setting-id='Skipstone.Memo.RedisTest']")
    test, told = tested.get_by_role("button", name="Test connection"), tested.get_by_role("status")
    test.click()
    if redis is None:
        expect(told).to_contain_text("No Redis address is set.")
        pytest.skip("redis-server is missing (Debian: apt-get install redis-server)")
    expect(told).to_contain_text("✓ Redis works")
    desk.shoot("memo-connection-dark")
    redis.stop()
    test.click()
    expect(told).to_contain_text("✗ No connection to Redis")
    desk.shoot("memo-no-connection-dark")
    desk.page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    state = panel.get_by_role("group", name="Redis")
    for _ in range(40):  # it is noticed by itself within 15 s
        panel.get_by_role("button", name="Refresh").click()
        if "not responding" in state.inner_text():
            break
        desk.page.wait_for_timeout(500)
    expect(state).to_contain_text("not responding")
    shown(desk, panel, "memo-without-redis")
