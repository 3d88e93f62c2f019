"""The pages of a sweep's study: optuna-dashboard, on this machine only, to look at and not to change."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from his2lip.cli.console import say
from his2lip.cli.served_page import port_needed
from his2lip.errors import RunError, first_line
from his2lip.resources import STORAGE

Wsgi = Callable[[dict[str, Any], Any], Iterable[bytes]]


def serve_study(study: str, port: int, *, opened: Callable[[str], None]) -> None:
    """Serves the study on 127.0.0.1 until Ctrl-C; `opened` gets the address of its page.

    study  the name of a sweep, its folder or URI, or the URL of its database
    Raises RunError where there is no study or its database cannot be used, ConfigError where the port cannot.
    """
    with opened_study(study) as url:
        _serve(url, study, port, opened)


def _serve(url: str, study: str, port: int, opened: Callable[[str], None]) -> None:
    import optuna
    import optuna_dashboard

    try:
        storage = optuna.storages.RDBStorage(url)
        studies = optuna.get_all_study_summaries(storage)
    except Exception as error:  # SQLAlchemy's own family, or the import of a driver
        what = f"the study's database cannot be opened: {first_line(error)}"
        raise RunError(what, where=study, key="--study", fix="check --study") from None
    app = only_here(optuna_dashboard.wsgi(storage), port)
    with port_needed(port):
        server = _server(app, port)
    page = f"http://127.0.0.1:{port}/dashboard/"
    if len(studies) == 1:
        page += f"studies/{studies[0]._study_id}"
    with server:
        say(f"study on {page}; stop it with Ctrl-C")
        opened(page)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return


@contextmanager
def opened_study(study: str) -> Iterator[str]:
    """The URL of the database of a sweep: by its name under STORAGE, its folder or URI, or the URL itself.

    Of a sweep on an object store it is a copy, as the study is now, which is removed at the end of the block.
    """
    from his2lip.tuning import study_at

    if "://" in study and _is_database(study):
        yield study
        return
    for place in (study,) if "://" in study else (study, f"{STORAGE}/tune/{study}"):
        with study_at(place) as url:
            if url is not None:
                yield url
                return
    fix = f"give the name of a sweep in {STORAGE}/tune, the folder or URI of one, or the URL of its database"
    raise RunError("there is no study here", where=study, key="--study", fix=fix)


def _is_database(url: str) -> bool:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError

    try:
        make_url(url).get_dialect()
    except (ArgumentError, NoSuchModuleError):
        return False
    return True


def only_here(app: Wsgi, port: int) -> Wsgi:
    """The pages for requests that read and that name this machine: pages of other sites can do nothing."""
    hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}

    def guarded(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ.get("HTTP_HOST") in hosts and environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            return app(environ, start_response)
        start_response("403 Forbidden", [("Content-Type", "text/plain")])
        return [b"These pages show a study to this machine; they do not change it.\n"]

    return guarded


def _server(app: Wsgi, port: int) -> Any:
    from socketserver import ThreadingMixIn
    from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

    class Server(ThreadingMixIn, WSGIServer):
        daemon_threads = True

    class Quiet(WSGIRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            """Prints nothing."""

    return make_server("127.0.0.1", port, app, server_class=Server, handler_class=Quiet)
