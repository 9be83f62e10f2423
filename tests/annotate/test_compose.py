"""The team's set-up: what can be seen of it without containers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from studio import add_users, answer, fill

from annotate.settings import configs_folder, load_config
from annotate.store import PreferenceStore
from annotate.web.config import ServeConfig

FOLDER = configs_folder() / "compose"
ROOT = Path(__file__).parents[2]


def test_what_the_compose_file_names_is_there():
    services = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]
    build = services["studio"]["build"]
    assert (FOLDER / build["context"]).resolve() == ROOT
    assert (ROOT / build["dockerfile"]).is_file()
    assert "nightly-backup.sh" in services["backup"]["command"]
    mounted = services["proxy"]["volumes"][0].partition(":")[0]
    assert (FOLDER / mounted).read_text().count("$STUDIO_ADDRESS") == 1
    settings = re.findall(r"--set (\S+?)'?(?=\s|$)", services["studio"]["command"])
    named = [re.sub(r"\$\{\w+:?.*?\}", "label.example.com", text) for text in settings]
    assert len(named) == services["studio"]["command"].count("--set") == 2
    load_config(ServeConfig, configs_folder() / "annotate/serve.yaml", named)


@pytest.fixture
def nightly(tmp_path):
    """Runs nightly-backup.sh once; returns how it ended."""
    with PreferenceStore.open(tmp_path / "studio") as store:
        fill(store)
        (ada,) = add_users(store, "ada")
        store.submit(ada.id, answer(store.claim(ada.id), "one"))
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "STUDIO": str(tmp_path / "studio"),
        "IMAGES": str(tmp_path / "studio" / "images"),
        "BACKUPS_KEPT": "2",
        "BACKUP_HOUR": "3",
    }
    (tmp_path / "backups").mkdir()
    script = [*("sh", str(FOLDER / "nightly-backup.sh")), str(tmp_path / "backups"), "once"]
    return lambda: subprocess.run(script, env=environment, capture_output=True, text=True)


def test_nightly_backups_are_checked_and_the_oldest_go(nightly, tmp_path):
    made = []
    for _ in range(3):
        done = nightly()
        assert done.returncode == 0, done.stderr
        made.append(max((tmp_path / "backups").iterdir()))
        time.sleep(1)  # their names are of whole seconds
    assert sorted((tmp_path / "backups").iterdir()) == made[1:]
    image = next((tmp_path / "studio" / "images").iterdir())
    image.write_bytes(image.read_bytes() + b"x")
    done = nightly()
    assert done.returncode != 0
    assert f"{image.name} was changed" in done.stdout + done.stderr
    # A backup with a damaged image is not written, and none that is there goes for it.
    assert sorted((tmp_path / "backups").iterdir()) == made[1:]
