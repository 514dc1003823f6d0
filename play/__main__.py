"""A page in the browser that shows what is going on inside your own model, while it learns and afterwards.

    python -m play --out_dir=out-shakespeare-char
    python -m play                                    lists the runs, and follows one that is being trained

It opens http://127.0.0.1:8000, which only this machine can reach. Everything is computed here, on the CPU, so
that a training run keeps its GPU. Ordinary clients of OpenAI's API can use http://127.0.0.1:8000/v1.
"""

import os
import secrets
import socket
import sys
import webbrowser
from pathlib import Path

from config import ROOT, end_script, override, require

# -----------------------------------------------------------------------------
out_dir = ""  # the run to look at first; '' = the list of all runs
port = 8000  # of the address; 0 = any that is free
host = ""  # '' = this machine alone; 0.0.0.0 = others, too, who need the token that is printed
browser = True  # open the page in a browser
# -----------------------------------------------------------------------------


def main(settings: dict) -> None:
    """Serve until Ctrl-C."""
    require(0 <= settings["port"] < 65536, f"port={settings['port']} makes no sense; expected 0 to 65535")
    home, chosen = ROOT, ""
    if settings["out_dir"]:
        from runtime.folder import run_folder

        folder = run_folder(str(Path(settings["out_dir"]).expanduser())).resolve()
        require((folder / "config.json").is_file(), f"{folder} holds no run; train one, or leave out_dir out")
        home, chosen = folder.parent, folder.name
    from play.server import Desk, Server  # now: wrong settings are told before torch is imported

    token = secrets.token_urlsafe(16) if settings["host"] else ""
    place = settings["host"] or "127.0.0.1"
    try:
        desk = Desk(home, chosen, token)
        server = Server((place, settings["port"]), desk)
    except OSError as error:
        raise ValueError(f"port {settings['port']} of {place}: {error.strerror}; try --port=0") from None
    place = socket.gethostname() if place == "0.0.0.0" else place
    address = f"http://{place}:{server.server_port}/" + (f"?token={token}" if token else "")
    print(f"{address}  (Ctrl-C ends it)", flush=True)
    screen = sys.platform in ("win32", "darwin") or {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys()
    if settings["browser"] and screen:  # without one, a browser for terminals might start here
        webbrowser.open_new_tab(address)
    try:
        server.serve_forever(poll_interval=0.5)
    finally:
        desk.end()


if __name__ == "__main__":
    main(override(globals()))
    end_script()
