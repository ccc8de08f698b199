"""Help pages and Chinese texts, where a person reads them."""


def read(desk, kind):
    """Drop a node, select it, and press the (i) that the front end shows over it: the page, and the node."""
    desk.evaluate("() => app.graph.clear()")
    node = desk.add(kind, 300, 200)
    desk.page.mouse.click(*desk.place(node))
    desk.page.get_by_test_id("info-button").first.click()
    page = desk.page.locator(".node-help-content").first
    page.locator("h1").first.wait_for()
    return page, node


def loaded(page):
    """Of each of its pictures, whether there is something to see."""
    script = "(all) => all.length > 0 && all.every((img) => img.complete)"
    page.page.wait_for_function(f"() => ({script})([...document.querySelectorAll('.node-help-content img')])")
    return page.locator("img").evaluate_all("(all) => all.map((img) => img.naturalWidth > 0)")


def test_a_page_is_shown_with_its_picture_and_tables(open_desk):
    desk = open_desk(dark=False)
    page, _ = read(desk, "SkipstoneMeanCache")
    assert page.locator("h1").first.inner_text() == "MeanCache"
    assert loaded(page) == [True]
    assert page.get_by_role("table").count() == 3
    desk.shoot("help")


def test_in_chinese(open_desk):
    desk = open_desk(vue=True, **{"Comfy.Locale": "zh"})
    page, node = read(desk, "SkipstoneAuto")
    assert "步缓存（自动）" in page.locator("h1").first.inner_text()  # noqa: RUF001
    assert loaded(page) == [True, True]
    assert desk.shown(node)[0] == "模式"
    # a node without a Chinese page shows the English one
    page, _ = read(desk, "SkipstoneDBCache")
    assert page.locator("h1").first.inner_text() == "DBCache"
    assert loaded(page) == [True]
