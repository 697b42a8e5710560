"""What a shell completes: commands, options and what they may be, in a real bash."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from upcycle import cli
from upcycle.commands import SUMMARY
from upcycle.verbs.completion import completion

ASK = """
source {script}
COMP_WORDS=({words}); COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 ))
_shtab_upcycle 2>/dev/null
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For bash, as the command prints it in a process of its own, which imports no torch."""
    code = "import sys; from upcycle import cli; code = cli.main(['completion', 'bash']); "
    done = subprocess.run(
        [sys.executable, "-c", code + "sys.exit(code or 'torch' in sys.modules)"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    file = tmp_path_factory.mktemp("shell") / "upcycle"
    file.write_text(done.stdout)
    return file


def completed(script: Path, *words: str) -> set[str]:
    """What bash offers for the last word."""
    typed = " ".join(f"'{word}'" for word in ("upcycle", *words))
    done = subprocess.run(
        ["bash", "-c", ASK.format(script=script, words=typed)], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes(script: Path) -> None:
    assert completed(script, "distill", "--me") == {"--method"}
    assert completed(script, "dis") == {"distill", "disassemble"}
    assert {"kd", "features", "netgraft"} <= completed(script, "distill", "--method", "")
    assert completed(script, "distill", "--precision", "bf") == {"bf16-mixed"}
    assert "--epochs" in completed(script, "distill", "--method", "kd", "--epo")
    assert completed(script, "completion", "z") == {"zsh"}


def test_zsh_gets_a_script_of_its_own() -> None:
    made = completion("zsh").script
    assert made.startswith("#compdef upcycle") and all(f"{verb}:" in made for verb in SUMMARY)


def test_another_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["completion", "tcsh"], ["completion"]):
        assert cli.main(words) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and "shell" in said and "Traceback" not in said
