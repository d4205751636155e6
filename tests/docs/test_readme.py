"""Every command and every file that the README shows, run in order in an empty directory."""

import re
import subprocess
from pathlib import Path

BLOCK = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)
NAME = re.compile(r"\(`([\w.]+)`\)")


def test_the_readme_works(tmp_path):
    (tmp_path / "jobs").symlink_to(Path("jobs").resolve())
    text = Path("README.md").read_text(encoding="utf-8")
    ran, at = [], 0
    for block in BLOCK.finditer(text):
        language, code = block.groups()
        # the file's name, where there is one, stands in the sentence before
        names = NAME.findall(text[at : block.start()].rsplit("\n\n", 2)[-2])
        at = block.end()
        if names and language in ("python", "toml"):
            (tmp_path / names[-1]).write_text(code, encoding="utf-8")
        elif language in ("python", "bash"):
            command = (
                ["bash", "-euo", "pipefail", "-c", code] if language == "bash" else ["python", "-c", code]
            )
            result = subprocess.run(
                command, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False
            )
            assert result.returncode == 0, f"{code}\n{result.stdout}\n{result.stderr}"
            ran.append(code)
    assert len(ran) == 22
    assert (tmp_path / "weights.npz").is_file()
    assert (tmp_path / "runs/script/run.h5").is_file()
    assert "<svg" in (tmp_path / "report.html").read_text(encoding="utf-8")
    # what is one's own has to stay short
    assert len((tmp_path / "mine.py").read_text().splitlines()) <= 20
    assert len((tmp_path / "sign_sgd.py").read_text().splitlines()) <= 40
    assert len((tmp_path / "ridge.py").read_text().splitlines()) <= 25
