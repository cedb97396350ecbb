import html
import secrets
import sqlite3
from contextlib import closing

from flask import Flask, abort, g, redirect, render_template_string, request, session, url_for

PAGE = """
<!doctype html><title>Guest book of the hut</title>
<h1>Guest book</h1>
{% for e in entries %}
  <article><b>{{ e.name }}</b> from {{ e.place }}, {{ e.at }}<p>{{ e.text }}</p></article>
{% else %}<p>Nobody yet. Be the first!</p>{% endfor %}
<form method="post" action="{{ url_for('sign') }}">
  <input type="hidden" name="token" value="{{ token }}">
  <input name="name" required maxlength="60" placeholder="Name">
  <input name="place" maxlength="60" placeholder="Where from?">
  <textarea name="text" required maxlength="2000"></textarea>
  <button>Sign</button>
</form>
{% if older %}<a href="{{ url_for('index', before=older) }}">older</a>{% endif %}
"""

SCHEMA = """
CREATE TABLE IF NOT EXISTS entry (
    id INTEGER PRIMARY KEY,
    at TEXT NOT NULL DEFAULT (datetime('now')),
    name TEXT NOT NULL, place TEXT NOT NULL, text TEXT NOT NULL
)"""


def create_app(database="guests.db", secret=None):
    app = Flask(__name__)
    app.secret_key = secret or secrets.token_bytes(32)

    with closing(sqlite3.connect(database)) as con, con:
        con.execute(SCHEMA)

    def db():
        if "db" not in g:
            g.db = sqlite3.connect(database)
            g.db.row_factory = sqlite3.Row
        return g.db

    @app.teardown_appcontext
    def close(_exc):
        con = g.pop("db", None)
        if con is not None:
            con.close()

    @app.get("/")
    def index():
        per_page = 10
        before = request.args.get("before", type=int)
        # Keyset paging: an OFFSET would show an entry twice when somebody
        # signs between two clicks on "older".
        rows = db().execute(
            "SELECT * FROM entry WHERE ?1 IS NULL OR id < ?1 ORDER BY id DESC LIMIT ?2",
            (before, per_page + 1),
        ).fetchall()
        more = len(rows) > per_page
        rows = rows[:per_page]
        token = session.setdefault("token", secrets.token_hex(16))
        return render_template_string(
            PAGE, entries=rows, token=token, older=rows[-1]["id"] if more else None
        )

    @app.post("/sign")
    def sign():
        sent = request.form.get("token", "")
        if not secrets.compare_digest(sent.encode(), session.get("token", "").encode()) or not sent:
            abort(400, "stale form, reload the page")
        name, place, text = (request.form.get(k, "").strip() for k in ("name", "place", "text"))
        if not name or not text:
            abort(422, "a name and a few words, please")
        with db() as con:
            con.execute(
                "INSERT INTO entry (name, place, text) VALUES (?, ?, ?)",
                (name[:60], place[:60] or "somewhere", text[:2000]),
            )
        return redirect(url_for("index"), code=303)

    @app.errorhandler(400)
    @app.errorhandler(422)
    def sorry(err):
        return f"<p>{html.escape(err.description)}</p><a href='/'>back</a>", err.code

    return app


if __name__ == "__main__":
    create_app().run(port=5055)
