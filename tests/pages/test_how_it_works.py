"""The page that explains the method."""

from tests.pages.conftest import words


def test_method_is_explained_with_every_verdict(app):
    app.run()
    app.switch_page("pages/how_it_works.py").run()
    assert not app.exception
    text = words(app)
    for word in ("Consistent", "Caution", "Unreliable", "Unknown", "What it does not tell"):
        assert word in text
    assert app.latex, "the formula is on the page"
